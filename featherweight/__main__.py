# SPDX-License-Identifier: Apache-2.0
"""`python -m featherweight`."""

from featherweight.cli import main

raise SystemExit(main())
