import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lesionseg.command_line import read_configs
from lesionseg.errors import InputError
from lesionseg.schedules import FreezeSchedule

ENCODER = ("stem", "stage1", "stage2", "stage3", "stage4")
BLOCKS = (*ENCODER, "decoder", "head")
OUT = {"decoder": "always", "head": "always"}
PRESETS = Path(__file__).parents[1] / "experiments" / "schedules"


def resolve(trains, epochs, names=BLOCKS):
    return FreezeSchedule.parse(trains).resolve(epochs, names)


def preset(name):
    path = str(PRESETS / f"{name}.yaml")
    return read_configs(["--config", path])[path]


def marks(resolved):
    """One line an epoch, one character a block: 1 trains, 0 frozen."""
    rows = (resolved.state(epoch) for epoch in range(resolved.epochs))
    return ["".join("1" if row[name] else "0" for name in BLOCKS) for row in rows]


def test_states_by_hand():
    trains = {
        "stem": "never",
        "stage1": [0.5, 1.0],
        "stage2": [{"start": 0.75, "stop": 1, "rate": 0.1}, {"start": 0, "stop": 0.5}],
        "encoder": "always",
        **OUT,
    }
    resolved = resolve(trains, 4)
    table = [
        # stem stage1 stage2 stage3 stage4 decoder head
        (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0),
        (0.0, 1.0, 0.1, 1.0, 1.0, 1.0, 1.0),
    ]
    assert [tuple(resolved.state(epoch)[name] for name in BLOCKS) for epoch in range(4)] == table
    assert [step.start for step in resolved.steps] == [0, 2, 3]
    assert resolved.table().splitlines() == [
        "epochs  stem  stage1  stage2  stage3  stage4  decoder  head",
        "0–1     ○     ○       ●       ●       ●       ●        ●",
        "2       ○     ●       ○       ●       ●       ●        ●",
        "3       ○     ●       ● ×0.1  ●       ●       ●        ●",
    ]
    data = json.loads(resolved.to_json())
    assert data["epochs"] == 4
    assert [(step["start"], step["stop"], step["rates"]["stage2"]) for step in data["steps"]] == [
        (0, 2, 1.0),
        (2, 3, 0.0),
        (3, 4, 0.1),
    ]


@pytest.mark.parametrize("names", [BLOCKS, BLOCKS[2:], (*BLOCKS, "classifier"), BLOCKS[5:]])
def test_names_that_a_network_could_have_pass_before_there_is_one(names):
    groups = ({}, {"encoder": "always"}) if set(ENCODER) & set(names) else ({"encoder": "always"},)
    for group in groups:
        FreezeSchedule.parse({**dict.fromkeys(names, "always"), **group}).check_names()


@pytest.mark.parametrize(
    ("trains", "said"),
    [
        ({"encoder": "always", "stage5": "never", **OUT}, "or `encoder`; got stage5; rename or remove them"),
        ({"stage2": "always", "stage4": "always", **OUT}, "got none for stage3; add them"),
        (OUT, "got none for stem, stage1, stage2, stage3, stage4; add them"),
        ({"encoder": "always", "head": "always"}, "got none for decoder; add them"),
    ],
)
def test_names_that_no_network_has_are_told_before_there_is_one(trains, said):
    with pytest.raises(InputError, match=f"{said}$"):
        FreezeSchedule.parse(trains).check_names()


def test_phases_that_touch_at_one_rate_are_one():
    trains = {"encoder": [{"start": 0, "stop": 0.5}, {"start": 0.5, "stop": 1}], **OUT}
    assert len(resolve(trains, 2).steps) == 1


@st.composite
def schedules(draw):
    """Phases of random blocks on a grid of hundredths, decoder and head always on."""
    trains = dict(OUT)
    for block in ENCODER:
        ends = sorted(draw(st.lists(st.integers(0, 100), max_size=6, unique=True)))
        rates = st.sampled_from([1.0, 0.5, 0.1])
        phases = [{"start": a / 100, "stop": b / 100, "rate": draw(rates)} for a, b in pairwise(ends)]
        trains[block] = draw(st.permutations([p for p in phases if draw(st.booleans())])) or "never"
    return trains


@given(schedules(), st.integers(1, 400))
def test_each_block_follows_its_own_phases(trains, epochs):
    """Against the rule itself, share s → before epoch round(s × epochs), block by block."""
    if not fits(trains, epochs):
        with pytest.raises(InputError, match="fall on the same one") as error:
            resolve(trains, epochs)
        numbers = [int(word) for word in error.value.remedy.split() if word.isdigit()]
        least, always = numbers[0], numbers[-1]
        assert [n for n in range(epochs, least + 1) if fits(trains, n)] == [least]
        assert always == least or not fits(trains, always - 1)
        assert all(fits(trains, n) for n in range(always, 101))
        return
    resolved = resolve(trains, epochs)
    for epoch in range(epochs):
        for block, rate in resolved.state(epoch).items():
            phases = [] if isinstance(trains[block], str) else trains[block]
            inside = [p["rate"] for p in phases if _at(p["start"], epochs) <= epoch < _at(p["stop"], epochs)]
            assert rate == (1.0 if trains[block] == "always" else sum(inside))
    changes = [e for e in range(1, epochs) if resolved.state(e) != resolved.state(e - 1)]
    assert [step.start for step in resolved.steps] == [0, *changes]
    assert len(resolved.table().splitlines()) == len(changes) + 2


def fits(trains, epochs):
    """Whether all changes of the schedule fall on different epochs."""
    phases = [phase for value in trains.values() if not isinstance(value, str) for phase in value]
    shares = {0, 1} | {phase[end] for phase in phases for end in ("start", "stop")}
    return len({_at(share, epochs) for share in shares}) == len(shares)


def _at(share, epochs):
    """Exact in hundredths: the shares of the property test are whole ones."""
    return (2 * round(share * 100) * epochs + 100) // 200


@pytest.mark.parametrize("epochs", [-1, 0])
def test_a_training_without_a_number_of_epochs_is_refused(epochs):
    with pytest.raises(InputError, match="set max_epochs"):
        resolve({"encoder": "always", **OUT}, epochs)


def test_an_epoch_outside_the_training_has_no_state():
    resolved = resolve({"encoder": "always", **OUT}, 3)
    for epoch in (-1, 3):
        with pytest.raises(ValueError, match=r"0…2"):
            resolved.state(epoch)


@pytest.mark.parametrize(
    ("trains", "message"),
    [
        ({"encoder": "always", "stage5": "always", "body": "never", **OUT}, "stem, .* head.* got stage5, body;"),
        ({"stem": "always", "stage1": "always", "head": "always"}, "got none for stage2, stage3, stage4, decoder;"),
        ({"encoder": [0.0, 0.5], "decoder": "never", "head": [0, 0.5]}, "all frozen between the shares 0.5 and 1;"),
        ({"encoder": [0.5, 0.52], **OUT}, "same one; train for 26 or at least 50 epochs"),
        ({"stem": [0, 0.333333], "encoder": [0.3333333, 1], **OUT}, "write shares .* alike"),
        ({"stem": [{"start": 0, "stop": 0.5}, {"start": 0.4, "stop": 1}], "encoder": "always", **OUT},
         "stem: expected phases that do not overlap; got 0…0.5 and 0.4…1;"),
        ({"stem": [0.5, 0.5]}, "stem: expected 0 ≤ start < stop ≤ 1; got 0.5…0.5"),
        ({"stem": [0.5, 1.2]}, "got 0.5…1.2"),
        ({"stem": [-0.1, 1]}, "got -0.1…1"),
        ({"stem": [{"start": 0, "stop": 1, "rate": 0}]}, "a rate above 0"),
        ({"stem": [{"start": 0, "stop": True}]}, "numbers in a phase"),
        ({"stem": [{"start": 0, "stop": float("nan")}]}, "numbers in a phase"),
        ({"stem": [{"start": 0, "end": 1}]}, "a phase {start, stop, rate}"),
        ({"stem": [[0, 1]]}, "a phase {start, stop, rate}"),
        ({"stem": [0.2]}, "a phase {start, stop, rate}"),
        ({"stem": "sometimes"}, "stem: expected always, never, .*; got 'sometimes'"),
        ({"stem": True}, "always, never"),
        ({"stem": []}, "always, never"),
        ({}, "a mapping from block"),
        ([("stem", "always")], "a mapping from block"),
    ],
)  # fmt: skip
def test_wrong_schedules_are_refused_with_the_names(trains, message):
    with pytest.raises(InputError, match=message):
        resolve(trains, 5)


NAMES = ("stem", "stage1", "decoder", "head")
PHASE = "stem: expected a phase {start, stop, rate}; got %s; write shares of the training, 0 to 1"


@pytest.mark.parametrize(
    ("trains", "epochs", "message"),
    [
        (7, 6, "expected a mapping from block to the phases it trains in; got 7; see experiments/schedules"),
        ({"encoder": "always", "stage9": "always", "body": "never", **OUT}, 6,
         "expected blocks of this network (stem, stage1, decoder, head) or `encoder`; got stage9, body; "
         "rename or remove them"),
        ({"encoder": "always"}, 6,
         "expected every block of this network (stem, stage1, decoder, head); got none for decoder, head; add them"),
        ({"encoder": [0.5, 1], "decoder": [0.5, 1], "head": [0.5, 1]}, 6,
         "expected a block that trains at any time; got all frozen between the shares 0 and 0.5; "
         "let one train there: stem, stage1, decoder, head"),
        ({"stem": 5}, 6, "stem: expected always, never, [start, stop] or a list of {start, stop, rate}; got 5; "
         "write one of these"),
        ({"stem": [[0, 0.5], [0.4, 1]]}, 6, PHASE % "[0, 0.5]"),
        ({"stem": [{"start": 0, "stop": "1"}]}, 6, "stem: expected numbers in a phase; got {'start': 0, 'stop': '1'}; "
         "write shares of the training, 0 to 1"),
        ({"stem": [{"begin": 0}]}, 6, PHASE % "{'begin': 0}"),
        ({"stem": [{"start": 0, "stop": 0.5}, {"start": 0.4, "stop": 1}]}, 6,
         "stem: expected phases that do not overlap; got 0…0.5 and 0.4…1; let each start where the one before stops"),
        ({"stem": [0.5, 1.5]}, 6, "stem: expected 0 ≤ start < stop ≤ 1; got 0.5…1.5; write shares of the training"),
        ({"stem": [{"start": 0, "stop": 1, "rate": 0}]}, 6,
         "stem: expected a rate above 0; got 0; leave the phase out: a block trains only in its phases"),
        ({"encoder": "always", **OUT}, 0, "expected a number of epochs; got 0; set max_epochs"),
        ({"encoder": [0, 0.34], "decoder": [0.33, 1], "head": "always"}, 6,
         "expected steps of at least one epoch; got 6 epochs, in which the shares 0.33 and 0.34 fall on the same one; "
         "train for 25 or at least 73 epochs"),
        ({"encoder": [0, 0.3333], "decoder": [0.33335, 1], "head": "always"}, 6,
         "expected steps of at least one epoch; got 6 epochs, in which the shares 0.3333 and 0.33335 fall on the same "
         "one; write shares that lie less than a thousandth apart alike"),
        ({"encoder": [0, 0.001], "decoder": "always", "head": "always"}, 6,
         "expected steps of at least one epoch; got 6 epochs, in which the shares 0 and 0.001 fall on the same one; "
         "train for at least 500 epochs"),
    ],
)  # fmt: skip
def test_messages_say_where_what_was_expected_what_stands_there_and_the_remedy(trains, epochs, message):
    with pytest.raises(InputError) as error:
        resolve(trains, epochs, NAMES)
    assert str(error.value).removeprefix("schedule: ") == message
    assert str(error.value).startswith("schedule: ")


def test_numbers_of_epochs_below_the_one_asked_for_are_no_remedy():
    """25 epochs are enough for these shares, 28 too, and any number from 73 on; not so 26."""
    with pytest.raises(InputError, match="train for 28 or at least 73 epochs"):
        resolve({"encoder": [0, 0.34], "decoder": [0.33, 1], "head": "always"}, 26)


def test_a_table_is_as_wide_as_its_widest_cell():
    lines = resolve({"stem": [0.25, 1], "encoder": "always", **OUT}, 4000).table().split("\n")
    assert [line[:14] for line in lines] == ["epochs     ste", "0–999      ○  ", "1000–3999  ●  "]


def test_presets_are_the_five_rows():
    assert {path.stem for path in PRESETS.glob("*.yaml")} >= {
        "baseline", "no_freezing", "freeze_encoder", "hierarchical_freezing", "hierarchical_unfreezing"
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_resolves_and_trains_the_head_always(path):
    """The decoder too, except where the head is first to learn, or one block and the head alone."""
    data = preset(path.stem)
    assert set(data) - {"data"} == {"name", "model", "schedule"}
    assert data["name"] == path.stem
    assert data["model"]["init_args"]["transfer"] == (
        path.stem not in ("baseline", "baseline_implants", "from_scratch")
    )
    outside = [name for name in ("decoder", "head", "classifier") if name in data["schedule"]["trains"]]
    learning = outside[1:] if path.stem in ("lp_ft", "head_only") or path.stem.startswith("surgical") else outside
    for epochs in range(6, 61):
        resolved = resolve(data["schedule"]["trains"], epochs, [*ENCODER, *outside])
        assert all(row.endswith("1" * len(learning)) for row in marks(resolved))


def test_the_encoder_stands_for_no_block_outside_of_it():
    with pytest.raises(InputError, match="got none for classifier"):
        resolve({"encoder": "always", **OUT}, 3, (*BLOCKS, "classifier"))


def test_presets_without_stages():
    assert set(marks(resolve(preset("baseline")["schedule"]["trains"], 3))) == {"1111111"}
    assert set(marks(resolve(preset("no_freezing")["schedule"]["trains"], 3))) == {"1111111"}
    assert set(marks(resolve(preset("freeze_encoder")["schedule"]["trains"], 3))) == {"0000011"}


def test_further_presets_by_hand():
    """Blocks from stem to head."""
    blocks = {"stem": "1000001", "stage1": "0100001", "stage2": "0010001", "stage3": "0001001", "stage4": "0000101"}
    for block, row in blocks.items():
        assert set(marks(resolve(preset(f"surgical_{block}")["schedule"]["trains"], 6))) == {row}
    assert set(marks(resolve(preset("head_only")["schedule"]["trains"], 6))) == {"0000001"}
    assert marks(resolve(preset("lp_ft")["schedule"]["trains"], 6)) == ["0000001"] * 3 + ["1111111"] * 3
    for name in ("l2_sp", "from_scratch", "no_freezing_clock"):
        assert set(marks(resolve(preset(name)["schedule"]["trains"], 3))) == {"1111111"}
    rates = list(resolve(preset("discriminative_rates")["schedule"]["trains"], 3).state(0).values())
    assert rates == pytest.approx([1 / 2.6**n for n in (5, 4, 3, 2, 1, 0, 0)], abs=5e-5)


@pytest.mark.parametrize("pace", ["clock", "plateau"])
def test_a_paced_preset_thaws_in_the_steps_of_its_plain_one(pace):
    plain, paced = preset("hierarchical_unfreezing"), preset(f"hierarchical_unfreezing_{pace}")
    assert paced["schedule"] == {**plain["schedule"], pace: paced["schedule"][pace]}
    assert (
        preset("no_freezing_clock")["schedule"]["clock"] == preset("hierarchical_unfreezing_clock")["schedule"]["clock"]
    )


FREEZING = ["1111111", "0111111", "0011111", "0001111", "0000111", "0000011"]
UNFREEZING = ["0000011", "0000111", "0001111", "0011111", "0111111", "1111111"]


FROM_DEEP = ["1111111", "1111011", "1110011", "1100011", "1000011", "0000011"]
FROM_INPUT = ["0000011", "1000011", "1100011", "1110011", "1111011", "1111111"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("hierarchical_freezing", FREEZING),
        ("hierarchical_unfreezing", UNFREEZING),
        ("freeze_from_deep", FROM_DEEP),
        ("thaw_from_input", FROM_INPUT),
    ],
)
@pytest.mark.parametrize(
    ("epochs", "lengths"),
    [(6, [1] * 6), (12, [2] * 6), (60, [10] * 6), (300, [50] * 6),
     (10, [2, 1, 2, 2, 1, 2]), (20, [3, 4, 3, 3, 4, 3]), (7, [1, 1, 2, 1, 1, 1])],
)  # fmt: skip
def test_hierarchical_presets_by_hand(name, rows, epochs, lengths):
    resolved = resolve(preset(name)["schedule"]["trains"], epochs)
    assert marks(resolved) == [row for row, length in zip(rows, lengths, strict=True) for _ in range(length)]
    assert len(resolved.steps) == 6


@pytest.mark.parametrize("name", ["hierarchical_freezing", "hierarchical_unfreezing"])
def test_too_few_epochs_for_a_hierarchical_preset_name_the_remedy(name):
    for epochs in range(1, 6):
        with pytest.raises(InputError, match="train for at least 6 epochs"):
            resolve(preset(name)["schedule"]["trains"], epochs)
