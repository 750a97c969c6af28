"""From scratch a small model of each class reads scikit-learn's handwritten digits: gradients are alive and true."""

import pytest
import quick_draws
import timm
import torch
import torch.nn.functional as F
import zoo

from attnzoo.backbones.contract.facts import families, group_of

load_digits = pytest.importorskip("sklearn.datasets").load_digits
train_test_split = pytest.importorskip("sklearn.model_selection").train_test_split

BATCH, RATE = 32, 3e-3

MODELS = {name: kwargs for family in zoo.FAMILIES.values() for name, kwargs in family.learns.items()}


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, scale_factor=4, mode="bilinear")
    return train_test_split(images, torch.tensor(labels), test_size=0.2, random_state=0, stratify=labels)


@pytest.fixture
def drawn(monkeypatch):
    """Every weight is drawn: what is learned may depend on it."""
    for name in quick_draws.METHODS:
        monkeypatch.delattr(torch.nn.Parameter, name)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in zoo.family(name).learns_slowly else name for name in MODELS],
)
def test_learns_digits(name, digits, drawn):
    train_images, test_images, train_labels, test_labels = digits
    model = timm.create_model(name, in_chans=1, num_classes=10, **MODELS[name])
    # Without convolutions and strides there is more to learn, and less to compute.
    epochs = 14 if "depth" in MODELS[name] else 4
    steps = epochs * (len(train_images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(train_images)).split(BATCH)[: len(train_images) // BATCH]:
            loss = F.cross_entropy(model(train_images[chosen]), train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    assert accuracy >= 0.95


def test_every_class_learns():
    """Or the family's entry of test data says why not."""
    for family, names in families().items():
        entry = zoo.FAMILIES[family]
        classes = {group_of(name).facts.model_cls: name for name in names}
        learning = {group_of(name).facts.model_cls for name in entry.learns}
        left = [name for model_cls, name in classes.items() if model_cls not in learning]
        assert not left or entry.not_learning, f"tests/zoo.py: `learns` of {family} has no model of the class of {left}"
        assert not (learning and entry.not_learning)
