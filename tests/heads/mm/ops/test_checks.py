"""Operators called as mmcv's C++ is: outputs passed in, whose shapes nobody has checked before."""

import math

import pytest
import torch
from mmcv import _ext as ext


def rand(*shape):
    return torch.rand(*shape)


def roi_align(**changed):
    arguments = dict(
        input=rand(2, 3, 6, 6), rois=torch.tensor([[1.0, 0, 0, 4, 4]]), output=rand(1, 3, 2, 2),
        argmax_y=rand(1, 3, 2, 2), argmax_x=rand(1, 3, 2, 2), aligned_height=2, aligned_width=2, spatial_scale=1.0,
        sampling_ratio=0, pool_mode=1, aligned=True,
    )  # fmt: skip
    return ext.roi_align_forward(**{**arguments, **changed})


def roi_align_backward(**changed):
    arguments = dict(
        grad_output=rand(1, 3, 2, 2), rois=torch.tensor([[1.0, 0, 0, 4, 4]]), argmax_y=rand(1, 3, 2, 2),
        argmax_x=rand(1, 3, 2, 2), grad_input=rand(2, 3, 6, 6), aligned_height=2, aligned_width=2, spatial_scale=1.0,
        sampling_ratio=0, pool_mode=0, aligned=True,
    )  # fmt: skip
    return ext.roi_align_backward(**{**arguments, **changed})


def roi_pool_backward(**changed):
    arguments = dict(
        grad_output=rand(1, 3, 2, 2), rois=torch.tensor([[1.0, 0, 0, 4, 4]]),
        argmax=torch.zeros(1, 3, 2, 2, dtype=torch.int32), grad_input=rand(2, 3, 6, 6), pooled_height=2, pooled_width=2,
        spatial_scale=1.0,
    )  # fmt: skip
    return ext.roi_pool_backward(**{**arguments, **changed})


def deform_conv(**changed):
    arguments = dict(
        input=rand(2, 4, 5, 5), weight=rand(6, 4, 3, 3), offset=torch.zeros(2, 18, 5, 5), output=rand(2, 6, 5, 5),
        columns=rand(0), ones=rand(0), kW=3, kH=3, dW=1, dH=1, padW=1, padH=1, dilationW=1, dilationH=1, group=1,
        deformable_group=1, im2col_step=1,
    )  # fmt: skip
    return ext.deform_conv_forward(**{**arguments, **changed})


def modulated_backward(**changed):
    arguments = dict(
        input=rand(2, 4, 5, 5), weight=rand(6, 4, 3, 3), bias=rand(6), ones=rand(0), offset=torch.zeros(2, 18, 5, 5),
        mask=rand(2, 9, 5, 5), columns=rand(0), grad_input=rand(2, 4, 5, 5), grad_weight=rand(6, 4, 3, 3),
        grad_bias=rand(6), grad_offset=rand(2, 18, 5, 5), grad_mask=rand(2, 9, 5, 5), grad_output=rand(2, 6, 5, 5),
        kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, pad_h=1, pad_w=1, dilation_h=1, dilation_w=1, group=1,
        deformable_group=1, with_bias=True,
    )  # fmt: skip
    return ext.modulated_deform_conv_backward(**{**arguments, **changed})


def carafe(**changed):
    arguments = dict(
        features=rand(2, 4, 3, 3), masks=rand(2, 9, 6, 6), output=rand(2, 4, 6, 6), kernel_size=3, group_size=1,
        scale_factor=2,
    )  # fmt: skip
    return ext.carafe_naive_forward(**{**arguments, **changed})


def carafe_backward(**changed):
    arguments = dict(
        top_grad=rand(2, 4, 6, 6), features=rand(2, 4, 3, 3), masks=rand(2, 9, 6, 6), bottom_grad=rand(2, 4, 3, 3),
        mask_grad=rand(2, 9, 6, 6), kernel_size=3, group_size=1, scale_factor=2,
    )  # fmt: skip
    return ext.carafe_naive_backward(**{**arguments, **changed})


def psamask(**changed):
    arguments = dict(
        input=rand(2, 15, 4, 5), output=rand(2, 20, 4, 5), psa_type=0, num_=2, h_feature=4, w_feature=5, h_mask=3,
        w_mask=5, half_h_mask=1, half_w_mask=2,
    )  # fmt: skip
    return ext.psamask_forward(**{**arguments, **changed})


def im2col(**changed):
    pixels = torch.tensor([0, 3])
    arguments = dict(
        im=rand(1, 2, 4, 4), mask_h_idx=pixels, mask_w_idx=pixels, col=rand(18, 2), kernel_h=3, kernel_w=3, pad_h=1,
        pad_w=1,
    )  # fmt: skip
    return ext.masked_im2col_forward(**{**arguments, **changed})


def col2im(**changed):
    pixels = torch.tensor([0, 3])
    arguments = dict(
        col=rand(2, 2), mask_h_idx=pixels, mask_w_idx=pixels, im=rand(1, 2, 4, 4), height=4, width=4, channels=2
    )
    return ext.masked_col2im_forward(**{**arguments, **changed})


def sigmoid_focal(**changed):
    arguments = dict(
        input=rand(3, 4), target=torch.tensor([0, 4, -1]), weight=rand(0), output=rand(3, 4), gamma=2.0, alpha=0.25
    )
    return ext.sigmoid_focal_loss_forward(**{**arguments, **changed})


def softmax_focal(**changed):
    arguments = dict(
        input=rand(3, 4).softmax(1),
        target=torch.tensor([0, 3, -1]),
        weight=rand(4),
        output=rand(3),
        gamma=2.0,
        alpha=0.25,
    )
    return ext.softmax_focal_loss_forward(**{**arguments, **changed})


def nms(**changed):
    return ext.nms(**{**dict(boxes=rand(4, 4), scores=rand(4), iou_threshold=0.5, offset=0), **changed})


def softnms(**changed):
    arguments = dict(
        boxes=rand(4, 4),
        scores=rand(4),
        dets=rand(4, 5),
        iou_threshold=0.5,
        sigma=0.5,
        min_score=0.0,
        method=1,
        offset=0,
    )
    return ext.softnms(**{**arguments, **changed})


def attention_backward(**changed):
    arguments = dict(
        value=rand(2, 12, 2, 4), value_spatial_shapes=torch.tensor([[3, 4]]), value_level_start_index=torch.tensor([0]),
        sampling_locations=rand(2, 5, 2, 1, 3, 2), attention_weights=rand(2, 5, 2, 1, 3), grad_output=rand(2, 5, 8),
        grad_value=rand(2, 12, 2, 4), grad_sampling_loc=rand(2, 5, 2, 1, 3, 2), grad_attn_weight=rand(2, 5, 2, 1, 3),
        im2col_step=1,
    )  # fmt: skip
    return ext.ms_deform_attn_backward(**{**arguments, **changed})


OPERATORS = (roi_align, roi_align_backward, roi_pool_backward, deform_conv, modulated_backward, carafe, carafe_backward,
             psamask, im2col, col2im, sigmoid_focal, softmax_focal, nms, softnms, attention_backward)  # fmt: skip
NAN = torch.tensor([[0.0, 0, math.nan, 4, 4]])


@pytest.mark.parametrize("operator", OPERATORS)
def test_fitting_arguments_are_accepted(operator):
    operator()


@pytest.mark.parametrize(
    ("operator", "changed", "message"),
    [
        (roi_align, dict(output=rand(1, 1, 2, 2)), r"roi_align_forward: output must have the shape \(1, 3, 2, 2\)"),
        (roi_align, dict(output=[1]), r"output must be a tensor, got list"),
        (roi_align, dict(input=torch.zeros(2, 3, 6, 6, dtype=torch.int64)), r"input must be floating, got torch"),
        (roi_align, dict(rois=torch.tensor([[2.0, 0, 0, 4, 4]])), r"rois\[:, 0\] must be .* the 2 images of the batch"),
        (roi_align, dict(rois=torch.tensor([[-1.0, 0, 0, 4, 4]])), r"rois\[:, 0\] must be .* got -1\.0 to -1\.0"),
        (roi_align, dict(rois=torch.tensor([[0.5, 0, 0, 4, 4]])), r"rois\[:, 0\] must be whole numbers"),
        (roi_align, dict(rois=NAN), r"rois has values that are not finite"),
        (roi_align, dict(rois=torch.tensor([[0.0, 0, 0, 1e9, 1e9]])), r"a region takes 1e\+18 samples"),
        (roi_align, dict(sampling_ratio=10**6), r"a region takes 4e\+12 samples"),
        (roi_align, dict(input=rand(2, 3, 0, 6)), r"input has no pixel, 0 x 6"),
        (roi_align, dict(spatial_scale=math.nan), r"spatial_scale=nan: must be above 0"),
        (roi_align, dict(pool_mode=2), r"pool_mode=2: allowed are 0, 1"),
        (roi_align, dict(aligned_height=0), r"bins_in_a_column=0: must be 1 or more"),
        (roi_align, dict(pool_mode=0, argmax_x=rand(1)), r"argmax_x must have the shape \(1, 3, 2, 2\), got \(1,\)"),
        (roi_align_backward, dict(grad_output=rand(1, 1, 2, 2)), r"grad_output must have the shape \(1, 3, 2, 2\)"),
        (roi_align_backward, dict(rois=torch.tensor([[7.0, 0, 0, 4, 4]])), r"rois\[:, 0\]"),
        (roi_pool_backward, dict(argmax=torch.full((1, 3, 2, 2), 36, dtype=torch.int32)), r"argmax must be .* 36"),
        (roi_pool_backward, dict(argmax=torch.zeros(1, 3, 2, 2)), r"argmax must be torch\.int32"),
        (deform_conv, dict(output=rand(1, 6, 5, 5)), r"output must have the shape \(2, 6, 5, 5\), got \(1, 6, 5, 5\)"),
        (deform_conv, dict(offset=torch.zeros(2, 9, 5, 5)), r"offset must have the shape \(2, 18, h, w\)"),
        (deform_conv, dict(group=0), r"group=0: must be 1 or more"),
        (deform_conv, dict(group=3), r"no multiple of group=3"),
        (deform_conv, dict(dW=0), r"stride_w=0: must be 1 or more"),
        (deform_conv, dict(kW=1), r"weight must have the shape"),
        (deform_conv, dict(padH=0, padW=0, dilationH=3, dilationW=3), r"the kernel \(3, 3\) does not fit"),
        (modulated_backward, dict(grad_mask=rand(2, 1, 5, 5)), r"grad_mask must have the shape \(2, 9, 5, 5\)"),
        (modulated_backward, dict(grad_bias=rand(1)), r"grad_bias must have the shape \(6\), got \(1,\)"),
        (carafe, dict(masks=rand(1, 9, 6, 6)), r"masks must have the shape \(2, 9, 6, 6\), got \(1, 9, 6, 6\)"),
        (carafe, dict(output=rand(2, 1, 6, 6)), r"output must have the shape \(2, 4, 6, 6\)"),
        (carafe, dict(kernel_size=2), r"kernel_size=2: must be odd"),
        (carafe, dict(group_size=3), r"group_size=3: must divide the 4 channels"),
        (carafe, dict(scale_factor=1.5), r"scale_factor=1\.5: must be a whole number, got float"),
        (carafe_backward, dict(mask_grad=rand(1, 9, 6, 6)), r"mask_grad must have the shape \(2, 9, 6, 6\)"),
        (psamask, dict(output=rand(2, 1, 4, 5)), r"output must have the shape \(2, 20, 4, 5\), got \(2, 1, 4, 5\)"),
        (psamask, dict(h_feature=5), r"input must have the shape \(2, 15, 5, 5\)"),
        (psamask, dict(half_w_mask=5), r"half_w_mask=5: must be from 0 to 4"),
        (psamask, dict(psa_type="collect"), r"psa_type='collect': allowed are 0, 1"),
        (im2col, dict(mask_h_idx=torch.tensor([0, 4])), r"mask_h_idx must be from 0 to 3, got 0 to 4"),
        (im2col, dict(mask_w_idx=torch.tensor([-1, 0])), r"mask_w_idx must be from 0 to 3, got -1 to 0"),
        (im2col, dict(col=rand(18, 1)), r"col must have the shape \(18, 2\)"),
        (col2im, dict(mask_h_idx=torch.tensor([0, -1])), r"mask_h_idx must be from 0 to 3, got -1 to 0"),
        (col2im, dict(col=rand(2, 1)), r"mask_h_idx must have the shape \(1\), got \(2,\)"),
        (sigmoid_focal, dict(output=rand(3, 1)), r"output must have the shape \(3, 4\)"),
        (sigmoid_focal, dict(target=torch.tensor([0])), r"target must have the shape \(3\)"),
        (sigmoid_focal, dict(weight=rand(3)), r"weight must have the shape \(4\), got \(3,\)"),
        (sigmoid_focal, dict(gamma=-1.0), r"gamma=-1\.0: must be 0 or more"),
        (softmax_focal, dict(target=torch.tensor([0, 4, 1])), r"target must be from .* to 3, got 0 to 4"),
        (softmax_focal, dict(target=torch.zeros(3)), r"target must be torch\.int64, got torch\.float32"),
        (softmax_focal, dict(output=rand(1)), r"output must have the shape \(3\)"),
        (nms, dict(scores=rand(3)), r"nms: scores must have the shape \(4\), got \(3,\)"),
        (nms, dict(boxes=rand(4, 5)), r"boxes must have the shape \(N, 4\), got \(4, 5\)"),
        (nms, dict(scores=torch.tensor([0.1, math.nan, 0.3, math.nan])), r"nms: scores is NaN in 2 of 4 rows"),
        (nms, dict(boxes=torch.full((4, 4), math.nan)), r"boxes is NaN in 4 of 4 rows"),
        (nms, dict(iou_threshold=math.nan), r"iou_threshold=nan: must be finite"),
        (nms, dict(offset=2), r"offset=2: allowed are 0, 1"),
        (softnms, dict(dets=rand(2, 5)), r"dets must have the shape \(4, 5\), got \(2, 5\)"),
        (softnms, dict(sigma=0.0), r"sigma=0\.0: must be above 0"),
        (attention_backward, dict(grad_value=rand(1, 12, 2, 4)), r"grad_value must have the shape \(2, 12, 2, 4\)"),
        (attention_backward, dict(grad_output=rand(1, 5, 8)), r"grad_output must have the shape \(2, 5, 8\)"),
        (attention_backward, dict(value_spatial_shapes=torch.tensor([[-3, -4]])), r"levels must have a pixel"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named(operator, changed, message):
    with pytest.raises((TypeError, ValueError), match=message):
        operator(**changed)


def test_tensors_on_two_devices_are_named():
    with pytest.raises(ValueError, match=r"nms: scores is on meta, the tensors before it on cpu"):
        nms(scores=torch.empty(4, device="meta"))


def test_meta_tensors_have_no_values_to_look_at():
    """What counts operations runs models without values."""
    roi_align(input=torch.empty(2, 3, 6, 6, device="meta"), rois=torch.empty(1, 5, device="meta"),
              output=torch.empty(1, 3, 2, 2, device="meta"))  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "name", "shape"),
    [
        (roi_align, "output", (1, 3, 2, 2)),
        (roi_align_backward, "grad_input", (2, 3, 6, 6)),
        (deform_conv, "output", (2, 6, 5, 5)),
        (modulated_backward, "grad_offset", (2, 18, 5, 5)),
        (carafe, "output", (2, 4, 6, 6)),
        (carafe_backward, "bottom_grad", (2, 4, 3, 3)),
        (psamask, "output", (2, 20, 4, 5)),
        (psamask, "input", (2, 15, 4, 5)),
        (im2col, "col", (18, 2)),
        (sigmoid_focal, "output", (3, 4)),
    ],
)
def test_tensors_may_lie_in_memory_as_they_like(operator, name, shape):
    results = []
    for contiguous in (True, False):
        torch.manual_seed(0)
        tensor = rand(*shape)
        if not contiguous:
            tensor = tensor.mT.contiguous().mT
            assert not tensor.is_contiguous()
        written = tensor
        if name == "input":
            written = torch.zeros(2, 20, 4, 5)
            operator(input=tensor, output=written)
        else:
            torch.manual_seed(1)
            operator(**{name: tensor})
        results.append(written)
    torch.testing.assert_close(*results)


def test_offsets_that_are_not_finite_make_their_place_nan_alone():
    offset, output, plain = torch.zeros(2, 18, 5, 5), rand(2, 6, 5, 5), rand(2, 6, 5, 5)
    torch.manual_seed(0)
    deform_conv(offset=offset.clone(), output=plain)
    offset[0, 3, 1, 2], offset[1, 17, 4, 4] = math.nan, -math.inf
    torch.manual_seed(0)
    deform_conv(offset=offset, output=output)
    places = output.isnan().any(1)
    assert places.nonzero().tolist() == [[0, 1, 2], [1, 4, 4]]
    assert torch.equal(output.movedim(1, -1)[~places], plain.movedim(1, -1)[~places])


def test_no_images_and_no_regions():
    deform_conv(input=rand(0, 4, 5, 5), offset=rand(0, 18, 5, 5), output=rand(0, 6, 5, 5))
    grad_weight = torch.ones(6, 4, 3, 3)
    modulated_backward(
        input=rand(0, 4, 5, 5), offset=rand(0, 18, 5, 5), mask=rand(0, 9, 5, 5), grad_input=rand(0, 4, 5, 5),
        grad_offset=rand(0, 18, 5, 5), grad_mask=rand(0, 9, 5, 5), grad_output=rand(0, 6, 5, 5),
        grad_weight=grad_weight,
    )  # fmt: skip
    assert (grad_weight == 1).all()
    for mode in (0, 1):
        none = {key: rand(0, 3, 2, 2) for key in ("argmax_y", "argmax_x")}
        roi_align(rois=rand(0, 5), output=rand(0, 3, 2, 2), pool_mode=mode, **none)
        grad = rand(2, 3, 6, 6)
        roi_align_backward(rois=rand(0, 5), grad_output=rand(0, 3, 2, 2), grad_input=grad, pool_mode=mode, **none)
        assert (grad == 0).all()
