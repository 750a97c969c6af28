"""From scratch a small model of each class reads scikit-learn's handwritten digits: gradients are alive and true."""

import pytest
import timm
import torch
import torch.nn.functional as F

load_digits = pytest.importorskip("sklearn.datasets").load_digits
train_test_split = pytest.importorskip("sklearn.model_selection").train_test_split

BATCH, RATE = 32, 3e-3

# One model of each class, narrow.
PYRAMID = dict(depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64))
HEADS = dict(PYRAMID, num_heads=(1, 2, 3, 4))
DEIT = dict(depth=2, embed_dim=64, num_heads=2, patch_size=8, img_size=32, global_pool="avg")
NARROW = {
    "agent_cswin_small": dict(HEADS, num_heads=(2, 2, 2, 4), img_size=32),
    "agent_deit_base": dict(DEIT, num_agents=9, agent_blocks=1),
    "agent_pvt_small": dict(HEADS, img_size=32),
    "agent_swin_tiny": dict(HEADS, img_size=32),
    "biformer_tiny": dict(PYRAMID, n_win=4, head_dim=16),
    "coat_lite_tiny": dict(serial_depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64)),
    "coat_tiny": dict(serial_depths=(1, 1, 1, 1), parallel_depth=1, embed_dims=(16, 48, 48, 48)),
    "inline_deit_tiny": DEIT,
    "inline_pvt_tiny": dict(HEADS, img_size=32),
    "inline_swin_tiny": dict(HEADS, img_size=32),
    "litv2_small": HEADS,
    "mscan_tiny": PYRAMID,
    "dinat_mini": dict(HEADS, dilations=((2,), (1,), (1,), (1,)), kernel_size=3),
    "van_b0": PYRAMID,
}


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, scale_factor=4, mode="bilinear")
    return train_test_split(images, torch.tensor(labels), test_size=0.2, random_state=0, stratify=labels)


# The same attention as another's, on another body.
SLOW = ("agent_cswin_small", "agent_deit_base", "agent_pvt_small", "coat_tiny", "inline_deit_tiny", "inline_swin_tiny")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NARROW]
)
def test_learns_digits(name, digits):
    train_images, test_images, train_labels, test_labels = digits
    model = timm.create_model(name, in_chans=1, num_classes=10, **NARROW[name])
    # Without convolutions and strides there is more to learn, and less to compute.
    epochs = 14 if "_deit_" in name else 5
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
    print(accuracy)
    assert accuracy >= 0.95
