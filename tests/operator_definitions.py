"""The public operators once more, dense, in float64: every query against every key, every sample against every pixel.

Nothing here is taken from the package, so that it guards the definitions there (`kernels/*/naive.py`) too; what a
window or a region may see is a mask.
"""

import torch
import torch.nn.functional as F


def _attend(q, k, v, num_heads, seen, bias, scale):
    """Queries (B, N, C), keys (B, K, C), what sees what (N, K) or (B, N, K), bias (heads, N, K) or None."""
    b, n, c = q.shape
    q, k, v = (x.unflatten(2, (num_heads, c // num_heads)).transpose(1, 2) for x in (q, k, v))
    logits = float(scale) * (q @ k.transpose(2, 3))
    if bias is not None:
        logits = logits + bias
    seen = seen if seen.dim() == 2 else seen[:, None]
    return (logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)


def _grid(rows, cols):
    """Row and column of every place, in raster order."""
    return rows.repeat_interleave(len(cols)), cols.repeat(len(rows))


def window_attention(q, k, v, num_heads, window_size, shift=0, overlap=0, bias_table=None, scale=None):
    b, height, width, c = q.shape
    (wh, ww), (sh, sw) = ((x, x) if isinstance(x, int) else x for x in (window_size, shift))
    half = overlap // 2
    scale = (c // num_heads) ** -0.5 if scale is None else scale
    # In the rolled map windows start at its corner.
    q, k, v = (torch.roll(x, (-sh, -sw), (1, 2)) for x in (q, k, v))
    k, v = (F.pad(x, (0, 0, half, half, half, half)) for x in (k, v))
    row, col = _grid(torch.arange(height), torch.arange(width))
    key_row, key_col = _grid(torch.arange(-half, height + half), torch.arange(-half, width + half))

    def sees(place, key, size, side, moved):
        first = place[:, None] // side * side
        inside = (key >= first - half) & (key < first + side + half)
        # The last window holds pixels of both ends of the axis.
        wrapped = (place >= size - moved)[:, None] == (key >= size - moved)
        return inside & wrapped if moved else inside

    seen = sees(row, key_row, height, wh, sh) & sees(col, key_col, width, ww, sw)
    bias = None
    if bias_table is not None:
        down = (row[:, None] - key_row + wh - 1 + half).clamp(0, 2 * wh - 2 + overlap)
        right = (col[:, None] - key_col + ww - 1 + half).clamp(0, 2 * ww - 2 + overlap)
        bias = bias_table[down * (2 * ww - 1 + overlap) + right].permute(2, 0, 1)
    out = _attend(*(x.flatten(1, 2) for x in (q, k, v)), num_heads, seen, bias, scale)
    return torch.roll(out.view(b, height, width, c), (sh, sw), (1, 2))


def window_attention_packed(qkv, num_heads, window_size, shift=0, overlap=0, bias_table=None, scale=None):
    return window_attention(*qkv.chunk(3, -1), num_heads, window_size, shift, overlap, bias_table, scale)


def _region_scores(q, k, regions):
    """Region of every pixel, scores of regions (B, R, R), minus infinity for empty ones."""
    height, width = q.shape[1:3]
    sides = -(-height // regions[0]), -(-width // regions[1])
    row, col = _grid(torch.arange(height), torch.arange(width))
    region = row // sides[0] * regions[1] + col // sides[1]
    count = regions[0] * regions[1]
    member = F.one_hot(region, count).to(q.dtype)
    pixels = member.sum(0)
    means = [torch.einsum("bnc,nr->brc", x.flatten(1, 2), member) / pixels.clamp(min=1)[:, None] for x in (q, k)]
    return region, (means[0] @ means[1].transpose(1, 2)).masked_fill(pixels == 0, -torch.inf)


def routing_margin(q, k, regions, topk):
    """By how much the last region chosen beats the first one left, at the least; infinite where none is left."""
    region, scores = _region_scores(q, k, regions)
    best = scores[:, region.unique()].sort(-1, descending=True)[0]
    if topk >= best.shape[-1] or best.numel() == 0:
        return float("inf")
    return (best[..., topk - 1] - best[..., topk]).nan_to_num(nan=float("inf")).min().item()


def routing_attention(q, k, v, num_heads, regions, topk, scale):
    b, height, width, c = q.shape
    region, scores = _region_scores(q.detach(), k.detach(), regions)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(2, scores.topk(topk)[1], True)
    seen = chosen[:, region][:, :, region]
    out = _attend(*(x.flatten(1, 2) for x in (q, k, v)), num_heads, seen, None, scale)
    return out.view(b, height, width, c)


def routing_attention_packed(qkv, num_heads, regions, topk, scale, local_weight=None, local_bias=None):
    q, k, v = qkv.chunk(3, -1)
    out = routing_attention(q, k, v, num_heads, regions, topk, scale)
    if local_weight is None:
        return out
    return out + depthwise_conv(v.permute(0, 3, 1, 2), local_weight, local_bias).permute(0, 2, 3, 1)


def neighborhood_attention(q, k, v, num_heads, kernel_size, dilation=1, bias_table=None, scale=None):
    b, height, width, c = q.shape
    scale = (c // num_heads) ** -0.5 if scale is None else scale

    def sees(place, key, size):
        residue, number = place % dilation, place // dilation
        members = (size - 1 - residue) // dilation + 1
        first = torch.minimum(number - kernel_size // 2, members - kernel_size).clamp(min=0)[:, None]
        there = key // dilation
        return (key % dilation == residue[:, None]) & (there >= first) & (there < first + kernel_size)

    row, col = _grid(torch.arange(height), torch.arange(width))
    seen = sees(row, row, height) & sees(col, col, width)
    bias = None
    if bias_table is not None:
        side = 2 * kernel_size - 1
        down, right = (
            (x // dilation - x[:, None] // dilation + kernel_size - 1).clamp(0, side - 1) for x in (row, col)
        )
        bias = bias_table[:, down, right]
    out = _attend(*(x.flatten(1, 2) for x in (q, k, v)), num_heads, seen, bias, scale)
    return out.view(b, height, width, c)


def neighborhood_attention_packed(qkv, num_heads, kernel_size, dilation=1, bias_table=None, scale=None):
    return neighborhood_attention(*qkv.chunk(3, -1), num_heads, kernel_size, dilation, bias_table, scale)


def generalized_neighborhood_attention(
    q, k, v, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, bias_table=None, scale=None
):
    b, height, width, c = q.shape
    scale = (c // num_heads) ** -0.5 if scale is None else scale
    axes = [
        [x if isinstance(x, int) else x[axis] for x in (kernel_size, stride, dilation, is_causal)] for axis in (0, 1)
    ]

    def window(place, size, axis):
        """Of one pixel of an axis: the pixels that it sees, by the words of the definition."""
        length, step, apart, causal = axis
        members = list(range(place % apart, size, apart))
        number = members.index(place)
        group = [i for i in range(len(members)) if i // step == number // step]
        if causal:
            # A group at the end of the axis is as long as the others for its leader, whom it may lack.
            leader = min(group[0] + step - 1, len(members) - 1)
            return [members[i] for i in range(max(leader - length + 1, 0), number + 1)]
        leader = min(group[0] + step // 2, len(members) - 1)
        first = leader - length // 2
        while first + length > len(members):
            first -= 1
        return members[max(first, 0) :][:length]

    def sees(size, axis):
        seen = torch.zeros(size, size, dtype=torch.bool)
        for place in range(size):
            seen[place, window(place, size, axis)] = True
        return seen

    row, col = _grid(torch.arange(height), torch.arange(width))
    seen = sees(height, axes[0])[row][:, row] & sees(width, axes[1])[col][:, col]
    bias = None
    if bias_table is not None:
        down, right = (
            (x // axis[2] - x[:, None] // axis[2] + axis[0] - 1).clamp(0, 2 * axis[0] - 2)
            for x, axis in zip((row, col), axes, strict=True)
        )
        bias = bias_table[:, down, right]
    out = _attend(*(x.flatten(1, 2) for x in (q, k, v)), num_heads, seen, bias, scale)
    return out.view(b, height, width, c)


def flash_bias_attention(q, k, v, query_factor, key_factor, scale=None):
    scale = q.shape[3] ** -0.5 if scale is None else scale
    logits = float(scale) * torch.einsum("bhnd,bhmd->bhnm", q, k)
    spread = [x if x.dim() == 4 else x[None] for x in (query_factor, key_factor)]
    for rank in range(query_factor.shape[-1]):
        logits = logits + spread[0][..., :, None, rank] * spread[1][..., None, :, rank]
    return torch.einsum("bhnm,bhme->bhne", logits.softmax(-1), v)


def _likeness(x, side):
    """Of blocks of tokens (N, D): their means, and the mean cosine of all pairs of each."""
    blocks = [x[i : i + side] for i in range(0, len(x), side)]
    means = torch.stack([block.mean(0) for block in blocks])
    cosines = [F.cosine_similarity(block[:, None], block[None], dim=2, eps=1e-12).mean() for block in blocks]
    return means, torch.stack(cosines)


def similarity_map(q, k, block_size, similarity, topk, cdf, scale):
    """What block-sparse attention keeps for one head, and by how much no number of it lies on the edge."""
    (query, of_query), (key, of_key) = (_likeness(x, side) for x, side in zip((q, k), block_size, strict=True))
    alike = of_key > similarity
    margin = min((x - similarity).abs().min().item() for x in (of_query, of_key))
    kept = torch.zeros(len(query), len(key), dtype=torch.bool)
    for i, mean in enumerate(query):
        share = (scale * (key @ mean)).masked_fill(~alike, -torch.inf).softmax(0)
        if alike.any():
            first = share.argsort(descending=True).tolist()
            count, total = max(int(topk * len(key)), 1) if cdf is None else 0, 0.0
            while cdf is not None and count < len(first) and total + share[first[count]] <= cdf:
                total += share[first[count]].item()
                count += 1
            count = max(count, 1)
            kept[i, first[:count]] = True
            edges = (
                [abs(share[first[: n + 1]].sum().item() - cdf) for n in range(len(first))] if cdf is not None else []
            )
            if count < alike.sum():
                edges.append((share[first[count - 1]] - share[first[count]]).item())
            margin = min([margin, *edges])
        if of_query[i] <= similarity:
            kept[i] = True
    return kept | ~alike, margin


def _of_both(x):
    return (x, x) if isinstance(x, int) else tuple(x)


def block_sparse_margin(q, k, block_size, similarity, topk, cdf, scale):
    """The least of all heads' margins."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    given = _of_both(block_size), similarity, topk, cdf, scale
    heads = zip(q.detach().flatten(0, 1), k.detach().flatten(0, 1), strict=True)
    return min((similarity_map(query, key, *given)[1] for query, key in heads), default=float("inf"))


def block_sparse_attention(
    q, k, v, block_size=(128, 64), similarity=0.1, topk=0.5, cdf=None, scale=None, block_map=None
):
    scale = q.shape[3] ** -0.5 if scale is None else scale
    # Of no head yet.
    first = [x.flatten(0, 1)[:0] for x in (q, k, v)]
    out = first[0] @ first[1].transpose(1, 2) @ first[2]
    maps = [None] * (q.shape[0] * q.shape[1]) if block_map is None else block_map.flatten(0, 1)
    for query, key, value, kept in zip(*(x.flatten(0, 1) for x in (q, k, v)), maps, strict=True):
        sides = _of_both(block_size)
        if kept is None:
            kept = similarity_map(query.detach(), key.detach(), sides, similarity, topk, cdf, scale)[0]
        rows, cols = (torch.arange(len(x)) // side for x, side in zip((query, key), sides, strict=True))
        logits = (float(scale) * query @ key.t()).masked_fill(~kept[rows][:, cols], -torch.inf)
        out = torch.cat([out, (logits.softmax(1) @ value)[None]])
    return out.view(*q.shape[:3], v.shape[3])


def _tents(place, size):
    """Shares of all of `size` pixels in samples at these places, which pixels meet half-way."""
    return (1 - (place[..., None] * size - 0.5 - torch.arange(size)).abs()).clamp(min=0)


def deformable_attention_3d(value, depth, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    out = 0
    for level, ((height, width), start) in enumerate(zip(spatial_shapes, level_start_index, strict=True)):
        places, weights = sampling_locations[:, :, :, level], attention_weights[:, :, :, level]
        x, y = _tents(places[..., 0], width), _tents(places[..., 1], height)
        share = (y[..., :, None] * x[..., None, :]).flatten(-2)
        pixels = slice(start, start + height * width)
        if depth is not None:
            z = _tents(places[..., 2], depth.shape[3])
            spread = depth[:, pixels].expand(-1, -1, value.shape[2], -1)
            share = share * torch.einsum("bqmpz,bkmz->bqmpk", z, spread)
        out = out + torch.einsum("bqmp,bqmpk,bkmc->bqmc", weights, share, value[:, pixels])
    return out.flatten(2)


def deformable_attention(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    return deformable_attention_3d(
        value, None, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


def deformable_attention_from_offsets(
    value, spatial_shapes, level_start_index, reference_points, sampling_offsets, attention_logits
):
    # Of points all levels are as wide as a pixel of theirs; of boxes a step is half a box, over all points of a level.
    places = []
    for level, (height, width) in enumerate(spatial_shapes):
        reference, offset = reference_points[:, :, None, level, None], sampling_offsets[:, :, :, level]
        pixel = offset.new_tensor([1 / width, 1 / height])
        step = pixel if reference.shape[-1] == 2 else reference[..., 2:] / max(2 * offset.shape[3], 1)
        places.append(reference[..., :2] + offset * step)
    shares = attention_logits.exp() / attention_logits.exp().sum((3, 4), keepdim=True)
    return deformable_attention(value, spatial_shapes, level_start_index, torch.stack(places, 3), shares)


def depthwise_conv(x, weight, bias=None, dilation=1):
    rows, cols = weight.shape[2:]
    # Taps farther away than the map is wide see nothing.
    dilation = min(dilation, max(x.shape[2:]))
    down, right = dilation * (rows // 2), dilation * (cols // 2)
    padded = F.pad(x, (right, right, down, down))
    out = torch.zeros_like(x)
    for i in range(rows):
        for j in range(cols):
            part = padded[:, :, i * dilation :, j * dilation :][:, :, : x.shape[2], : x.shape[3]]
            out = out + weight[:, 0, i, j, None, None] * part
    return out if bias is None else out + bias[:, None, None]


def pointwise_conv(x, weight, bias=None, gate=None):
    out = torch.einsum("bchw,dc->bdhw", x, weight[:, :, 0, 0])
    out = out if bias is None else out + bias[:, None, None]
    return out if gate is None else gate * out


def large_kernel_attention(
    x, local_weight, local_bias, dilated_weight, dilated_bias, pointwise_weight, pointwise_bias, dilation=3
):
    gate = depthwise_conv(depthwise_conv(x, local_weight, local_bias), dilated_weight, dilated_bias, dilation)
    return pointwise_conv(gate, pointwise_weight, pointwise_bias, x)
