"""Maps of scenes between calls."""

import torch

from attnzoo.heads.bev.streaming import SceneMemory, rounds


def test_a_map_serves_the_next_frame_of_its_scene():
    memory, bev = SceneMemory(), torch.ones(2, 3, requires_grad=True)
    memory.keep("a", "0", bev)
    found = memory.previous("a", "0")
    assert found is not None and torch.equal(found, bev) and not found.requires_grad
    # Another scene, another frame before, none before.
    assert memory.previous("b", "0") is memory.previous("a", "1") is memory.previous("a", "") is None
    memory.keep("a", "1", bev)
    assert memory.previous("a", "0") is None and memory.previous("a", "1") is not None
    memory.clear()
    assert memory.previous("a", "1") is None


def test_old_scenes_are_forgotten():
    memory, bev = SceneMemory(), torch.ones(2, 3)
    for i in range(8):
        memory.keep(str(i), "0", bev)
    memory.keep("0", "1", bev)
    memory.keep("8", "0", bev)
    known = [i for i in range(9) if memory.previous(str(i), "1" if i == 0 else "0") is not None]
    assert known == [0, 2, 3, 4, 5, 6, 7, 8]


def test_rounds_have_a_frame_of_a_scene_each():
    assert rounds(list("aabcab")) == [[0, 2, 3], [1, 5], [4]]
    assert rounds([]) == []
