"""`CropClassifierTask`: which crops it learns from, which name a lesion gets, where it starts, and that it learns."""

import numpy as np
import pytest
import torch
from skimage.measure import label, regionprops
from torch.nn import functional

from lesionseg.boxes import Box
from lesionseg.crops import MARGIN
from lesionseg.data.dataset import Batch, Place
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.networks import blocks
from lesionseg.run_weights import read_net
from lesionseg.tasks import CropClassifierTask
from lesionseg.tasks.crop_classifier import reference_squares


def crop_task(**options):
    torch.manual_seed(0)
    options = {"encoder": "tu-test_resnet", "decoder_channels": (8, 8, 8, 8, 8), **options}
    return CropClassifierTask(input=InputSpec(64, "liver"), target="typed", **options)


def test_reference_lesions_are_components_of_one_type():
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((3, 24, 24)) < 0.2, rng.integers(2, 5, (3, 24, 24)), 1)
    expected = []
    for owner, plane in enumerate(targets):
        for kind in (2, 3, 4):
            for region in regionprops(label(plane == kind, connectivity=2)):
                top, left, bottom, right = region.bbox
                side = max(bottom - top, right - left) * (1 + 2 * MARGIN)
                expected.append((owner, (top + bottom) / 2, (left + right) / 2, side, kind - 2))
    owners, squares, types = reference_squares(targets)
    found = [(o, *s, t) for o, s, t in zip(owners.tolist(), squares.tolist(), types.tolist(), strict=True)]
    assert sorted(found) == sorted(expected)


def test_each_component_is_named_by_what_its_crop_shows(monkeypatch):
    """Slices of another size than the input; a classifier that names by brightness stands in for the trained one."""
    task = crop_task()
    truth = np.ones((2, 128, 160), np.uint8)
    truth[0, 20:40, 30:50], truth[0, 70:100, 90:110], truth[1, 50:80, 60:84] = 2, 4, 3
    box, spec = Box(4, 8, 120), task.spec
    images = torch.stack([spec.encode(np.repeat((95 + 35 * (plane - 3.0))[None], 3, 0), box) for plane in truth])
    pixels = torch.stack([spec.encode_labels(np.minimum(plane, 2), box).long() for plane in truth])
    scores = functional.one_hot(pixels, 3).movedim(-1, 1).float()
    monkeypatch.setattr(task.net, "forward", lambda images, deep=False: scores)
    centre = slice(24, 40)
    monkeypatch.setattr(task.net.classifier, "forward", lambda crops: -(
        crops[:, 0, centre, centre].mean((1, 2))[:, None] - torch.tensor([-1.0, 0, 1])
    ).abs())  # fmt: skip
    references = [torch.from_numpy(plane) for plane in truth]
    batch = Batch(images, torch.zeros(2, 64, 64), references, [box, box], [Place(0, 0, 0), Place(1, 1, 0)])
    for found, plane in zip(task.predict_slices(batch), truth, strict=True):
        assert found.dtype == torch.uint8
        assert found.shape == plane.shape
        for kind in np.unique(plane[plane > 1]):
            inside = found.numpy()[plane == kind]
            assert set(inside[inside > 1]) == {kind}
            assert np.mean(inside == kind) > 0.8


def test_slices_without_a_lesion_are_predicted(tiny_batch, monkeypatch):
    task, batch = crop_task().eval(), tiny_batch((), ())
    scores = functional.one_hot(batch.targets, 3).movedim(-1, 1).float()
    monkeypatch.setattr(task.net, "forward", lambda images, deep=False: scores)
    np.testing.assert_array_equal(torch.stack(task.predict_slices(batch)).numpy(), batch.targets.numpy())


def test_the_losses_by_hand_and_none_of_types_without_lesions(tiny_batch, monkeypatch):
    task, batch = crop_task().eval(), tiny_batch((2, 4), (), (3,))
    scores = torch.tensor([[1.0, 2, 3], [0, -1, 2], [4, 4, 1]])
    monkeypatch.setattr(task.net.classifier, "forward", lambda crops: scores[: len(crops)])
    rows, kinds = scores.double().numpy(), [0, 2, 1]
    expected = np.mean([np.log(np.exp(row).sum()) - row[kind] for row, kind in zip(rows, kinds, strict=True)])
    assert float(task.losses(batch)["types"]) == pytest.approx(expected, rel=1e-5)
    assert float(task.losses(tiny_batch((), ()))["types"]) == 0


def test_it_learns_both(tiny_batch):
    task, batch = crop_task(lr=3e-3).train(), tiny_batch((2, 3), (3, 4), (4,), ())
    optimizer, seen = task.configure_optimizers(), []
    for _ in range(25):
        parts = task.losses(batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
        seen.append({name: float(part.detach()) for name, part in parts.items()})
    for name in ("segmentation", "types"):
        assert seen[-1][name] < 0.8 * seen[0][name]


def test_the_classifier_is_a_block_and_shares_nothing():
    task = crop_task()
    found = blocks(task.net)
    assert list(found)[-3:] == ["decoder", "head", "classifier"]
    held = {name for name, _ in found["classifier"].parameters}
    assert held == {name for name, _ in task.net.named_parameters() if name.startswith("classifier.")}
    assert {name.split(".")[1] for name in held} == {"encoder", "head"}
    in_blocks = [id(p) for block in found.values() for _, p in block.parameters]
    assert sorted(in_blocks) == sorted(map(id, task.net.parameters()))


def test_both_encoders_start_from_the_pretrained_one(pretrained):
    description, tensors = read_net(pretrained)
    task = crop_task(decoder_channels=description["decoder_channels"], weights=pretrained)
    task.setup("fit")
    state = task.net.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    assert all(torch.equal(state[f"classifier.{name}"], tensor) for name, tensor in encoder.items())
    own = {**tensors, **{f"classifier.{name}": tensor + 1 for name, tensor in encoder.items()}}
    assert task.start(own) == own  # a run that has a classifier hands that on


@pytest.mark.parametrize("crop_px", [32, 100, 2048])
def test_crops_of_no_use_are_refused(crop_px):
    with pytest.raises(InputError, match=r"model.crop_px: expected a multiple of 32, 64 to 1024"):
        crop_task(crop_px=crop_px)


@pytest.mark.parametrize(
    ("size_px", "refused"), [(224, "model.crop_px: .* got 64"), (64, "data.input.size_px: .* got 64")]
)
def test_an_encoder_of_one_size_is_told_before_training(size_px, refused):
    spec = InputSpec(size_px, "liver")
    task = CropClassifierTask(input=spec, target="typed", encoder="tu-coatnet_nano_rw_224", crop_px=64)
    if size_px == 64:
        task.refuse_side("encoder", 224, "data.input.size_px")  # its own
        with pytest.raises(InputError, match=refused):
            task.refuse_side("encoder", 64, "data.input.size_px")
        return
    with pytest.raises(InputError, match=refused):
        task.check_start()
