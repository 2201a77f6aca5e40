# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression as part of an ONNX graph: decoded predictions in, detections out, the thresholds as inputs.

Per class, with several classes for a box if that is asked for; the score of a single class is its objectness. It gives
what `runtime.nms` gives, but in float32 and without the bound on candidates, so an overlap within rounding of the
threshold may fall to the other side.
"""

from __future__ import annotations

import onnx
from onnx import compose, parser

from featherweight.export.graph import IR_VERSION, OPSET
from featherweight.runtime.nms import DETECTIONS, PREDICTIONS

_BEST_ONLY = """
    best = ArgMax <axis = 2, keepdims = 1> (every)
    label_of = Range (zero, label_count, one)
    is_best = Equal (best, label_of)
    nothing = Constant <value_float = 0.0> ()
    scores = Where (is_best, every, nothing)
"""
_GRAPH = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
suppression (float[batch, n, {width}] {predictions}, float[1] confidence, float[1] iou)
    => (float[found, 7] {detections})
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    from_0 = Constant <value_ints = [0]> ()
    from_1 = Constant <value_ints = [1]> ()
    from_2 = Constant <value_ints = [2]> ()
    from_4 = Constant <value_ints = [4]> ()
    from_5 = Constant <value_ints = [5]> ()
    to_end = Constant <value_ints = [9223372036854775807]> ()
    last = Constant <value_ints = [-1]> ()
    half = Constant <value_float = 0.5> ()
    most = Constant <value_ints = [{most}]> ()

    center = Slice ({predictions}, from_0, from_2, last)
    size = Slice ({predictions}, from_2, from_4, last)
    extent = Mul (size, half)
    low = Sub (center, extent)
    high = Add (center, extent)
    corners = Concat <axis = 2> (low, high)
    objectness = Slice ({predictions}, from_4, from_5, last)
    {every}
    label_shape = Shape <start = 2, end = 3> (every)
    label_count = Squeeze (label_shape, from_0)
    {scores}
    by_class = Transpose <perm = [0, 2, 1]> (scores)
    picked = NonMaxSuppression (corners, by_class, most, iou, confidence)

    score_of = GatherND (by_class, picked)
    image_column = Slice (picked, from_0, from_1, from_1)
    place_column = Slice (picked, from_2, to_end, from_1)
    place = Concat <axis = 1> (image_column, place_column)
    box_of = GatherND (corners, place)

    image_flat = Squeeze (image_column, from_1)
    two = Constant <value = double {{2.0}}> ()
    image_wide = Cast <to = 11> (image_flat)
    behind = Mul (image_wide, two)
    score_wide = Cast <to = 11> (score_of)
    key = Sub (score_wide, behind)
    how_many = Shape (key)
    key_sorted, order = TopK <axis = 0, largest = 1, sorted = 1> (key, how_many)

    image_sorted = Gather (image_flat, order)
    batch_shape = Shape <start = 0, end = 1> ({predictions})
    batch_size = Squeeze (batch_shape, from_0)
    images = Range (zero, batch_size, one)
    image_rows = Unsqueeze (image_sorted, from_1)
    belongs = Equal (image_rows, images)
    belongs_number = Cast <to = 7> (belongs)
    counts = ReduceSum <keepdims = 0> (belongs_number, from_0)
    starts = CumSum <exclusive = 1> (counts, zero)
    start_of = Gather (starts, image_sorted)
    total = Squeeze (how_many, from_0)
    position = Range (zero, total, one)
    rank = Sub (position, start_of)
    early = Less (rank, most)
    kept_columns = NonZero (early)
    kept = Squeeze (kept_columns, from_0)
    chosen = Gather (order, kept)

    picked_kept = Gather (picked, chosen)
    picked_number = Cast <to = 1> (picked_kept)
    image_kept = Slice (picked_number, from_0, from_1, from_1)
    label_kept = Slice (picked_number, from_1, from_2, from_1)
    box_kept = Gather (box_of, chosen)
    score_flat = Gather (score_of, chosen)
    score_kept = Unsqueeze (score_flat, from_1)
    {detections} = Concat <axis = 1> (image_kept, box_kept, label_kept, score_kept)
}}
"""
_OF_ONE = "every = Identity (objectness)"
_OF_MANY = f"""classes = Slice ({PREDICTIONS}, from_5, to_end, last)
    every = Mul (classes, objectness)"""


def graph(*, num_classes: int, multi_label: bool, max_detections: int) -> onnx.ModelProto:
    """`predictions` (B, N, 5 + K), `confidence` (1,), `iou` (1,) -> `detections` (n, 7).

    A row is [image, x1, y1, x2, y2, class, score]; the images one after the other, in each the best first and at most
    `max_detections`.
    """
    text = _GRAPH.format(
        ir=IR_VERSION,
        opset=OPSET,
        predictions=PREDICTIONS,
        detections=DETECTIONS,
        most=max_detections,
        width=5 + num_classes,
        every=_OF_ONE if num_classes == 1 else _OF_MANY,
        scores="scores = Identity (every)" if multi_label or num_classes == 1 else _BEST_ONLY.strip(),
    )
    return parser.parse_model(text)


def added(decoder: onnx.ModelProto, **options: int | bool) -> onnx.ModelProto:
    """A model whose one output is `predictions`, with the suppression behind it."""
    after = compose.add_prefix(graph(**options), "nms_", rename_inputs=False, rename_outputs=False)  # type: ignore[arg-type]
    joined = compose.merge_models(decoder, after, io_map=[(PREDICTIONS, PREDICTIONS)])
    joined.graph.name = decoder.graph.name
    return joined
