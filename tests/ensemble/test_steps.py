import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import Code, RequestError
from ensemble.steps import OnnxStep, StageStep, TensorSpec, WiringError, check_inputs, check_wiring
from market.tables import validate_entities
from tests.ensemble import toy

DTYPES = [np.float32, np.int64, np.bool_, str]
specs = st.builds(
    lambda dtype, shape: ("", dtype, shape),
    st.sampled_from(DTYPES),
    st.lists(st.sampled_from([-1, 2, 5]), max_size=2),
)


@st.composite
def cascades(draw):
    """A cascade whose steps read any tensors made before and whose reply is all that no step reads."""
    made = [TensorSpec(f"request_{i}", *draw(specs)[1:]) for i in range(draw(st.integers(1, 3)))]
    request = tuple(made)
    steps, read = [], set()
    for i in range(draw(st.integers(1, 4))):
        inputs = tuple(
            draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique_by=lambda s: s.name))
        )
        outputs = tuple(TensorSpec(f"t_{i}_{j}", *draw(specs)[1:]) for j in range(draw(st.integers(1, 2))))
        onnx = draw(st.booleans())
        steps.append(
            OnnxStep(f"s{i}", "g.onnx", inputs, outputs) if onnx else StageStep(f"s{i}", inputs, outputs)
        )
        made += outputs
        read |= {spec.name for spec in inputs}
    reply = tuple(s for s in made if s not in request and s.name not in read)
    return steps, request, reply


@given(cascades())
def test_a_cascade_that_reads_what_was_made_before_fits(cascade):
    check_wiring(*cascade)


@given(cascades(), st.data())
def test_an_input_of_another_dtype_is_refused_by_step_and_tensor(cascade, data):
    steps, request, reply = cascade
    at = data.draw(st.integers(0, len(steps) - 1))
    step = steps[at]
    first = step.inputs[0]
    other = TensorSpec(
        first.name, next(d for d in DTYPES if TensorSpec("x", d).dtype != first.dtype), first.shape
    )
    changed = StageStep(step.name, (other, *step.inputs[1:]), step.outputs)
    with pytest.raises(WiringError, match=f"step '{step.name}' reads '{first.name}' as "):
        check_wiring([*steps[:at], changed, *steps[at + 1 :]], request, reply)


@given(cascades(), st.data())
def test_a_step_without_its_maker_is_refused(cascade, data):
    steps, request, reply = cascade
    at = data.draw(st.integers(0, len(steps) - 1))
    with pytest.raises(WiringError, match="which nothing before it makes"):
        check_wiring([*steps[:at], *steps[at + 1 :]], request, reply)  # a later step or the reply lacks it


@given(cascades(), st.data())
def test_a_tensor_made_twice_is_refused_by_both_makers(cascade, data):
    steps, request, reply = cascade
    again = data.draw(st.sampled_from([*request, *(spec for step in steps for spec in step.outputs)]))
    with pytest.raises(WiringError, match=f"step 'again' makes '{again.name}', which .* makes already"):
        check_wiring([*steps, StageStep("again", request, (again,))], request, reply)


def test_a_step_that_nobody_reads_is_refused():
    idle = StageStep("idle", toy.REQUEST, (TensorSpec("waste", np.int64),))
    with pytest.raises(WiringError, match="step 'idle' makes nothing that is read"):
        check_wiring([*toy.STEPS, idle], toy.REQUEST, toy.REPLY)


def test_two_steps_of_one_name_are_refused():
    with pytest.raises(WiringError, match="'user_state' needs a name of its own"):
        check_wiring(
            [*toy.STEPS, StageStep("user_state", toy.REQUEST, (TensorSpec("y", str),))], toy.REQUEST, ()
        )


def test_a_varying_dimension_fits_a_fixed_one_but_two_fixed_ones_must_agree():
    made = TensorSpec("x", np.float32, (-1,))
    read = StageStep("s", (TensorSpec("x", np.float32, (3,)),), (TensorSpec("y", np.float32),))
    check_wiring([read], [made], read.outputs)
    with pytest.raises(
        WiringError, match=r"reads 'x' as float32\[B, 3\], but the request makes it as float32\[B, 4\]"
    ):
        check_wiring([read], [TensorSpec("x", np.float32, (4,))], read.outputs)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("no space", str), "use letters, digits"),
        (("x", np.complex64), "not one of"),
        (("x", str, (0,)), "a dimension is positive"),
        (("x", np.int64, (-1,), "none"), "give a pad of that dtype"),
    ],
)
def test_a_tensor_that_cannot_be_served_is_refused_when_declared(arguments, text):
    with pytest.raises(ValueError, match=text):
        TensorSpec(*arguments)


@pytest.mark.parametrize("column", ["x_age-band", "x_v1.2", "x_" + "n" * 198])
def test_a_tensor_may_be_called_as_a_column_of_a_data_set_may_be(column):
    users = pd.DataFrame({"user_id": ["ana"], "market": ["BR"], column: ["a"]})
    contents = pd.DataFrame({"content_id": ["c"], "kind": ["video"], "markets": [["BR"]], column: ["b"]})
    for table, frame in zip(("user", "hist_content"), validate_entities(users, contents, None)[:2]):
        assert column in frame
        raw = TensorSpec(f"raw_{table}_{column}", str)
        made = StageStep("made", (TensorSpec("x", str),), (raw,))
        read = OnnxStep("read", "read.onnx", (raw,), (TensorSpec("y", str),))
        check_wiring([made, read], made.inputs, read.outputs)


WANTED = (
    TensorSpec("name", str),
    TensorSpec("weight", np.float32, (2,)),
    TensorSpec("seen", np.int64, (-1,)),
)


def arrays(**changed):
    sound = {
        "name": np.array([b"ana", "bj\u00f6rn"], object),
        "weight": np.ones((2, 2), np.float32),
        "seen": np.zeros((2, 3), np.int64),
    }
    return {name: array for name, array in {**sound, **changed}.items() if array is not None}


def test_text_reaches_a_stage_as_str_however_it_was_sent():
    for sent in (np.array([b"a", "b"], object), np.array(["a", "b"]), np.array([b"a", b"b"])):
        got = check_inputs(WANTED, arrays(name=sent))["name"]
        assert got.dtype == object
        assert got.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seen": None}, "tensor 'seen' is missing; send it as int64[B, *]"),
        ({"weight": np.ones((2, 2))}, "tensor 'weight' has dtype float64; send float32[B, 2]"),
        ({"weight": np.ones((2, 3), np.float32)}, "tensor 'weight' has shape [2, 3]; send float32[B, 2]"),
        ({"seen": np.zeros(2, np.int64)}, "tensor 'seen' has shape [2]; send int64[B, *]"),
        ({"seen": np.zeros((3, 1), np.int64)}, "tensor 'seen' has 3 rows, 'name' 2; send equal batches"),
        (
            {"weight": np.array([[1, 2], [3, np.inf]], np.float32)},
            "tensor 'weight' holds a non-finite number at row 1; send a finite float",
        ),
        (
            {"name": np.array([b"ok", b"\xff"], object)},
            "tensor 'name' holds text that is not UTF-8 at row 1; encode it as UTF-8",
        ),
        ({"name": np.array(["ok", None], object)}, "tensor 'name' holds None at row 1; send text"),
        ({"name": np.array([b"ok", 5], object)}, "tensor 'name' holds 5 at row 1; send text"),
    ],
)
def test_a_tensor_that_breaks_its_spec_is_refused_with_what_to_send(changed, message):
    with pytest.raises(RequestError) as caught:
        check_inputs(WANTED, arrays(**changed))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == message
