"""What the fields of a model's config mean, by their names: one table of patterns, and a walk over nested configs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal


class Kind(StrEnum):
    """What a field counts."""

    WIDTH = "width"
    HEADS = "heads"
    HEAD_DIM = "head_dim"
    DEPTH = "depth"
    LAYER_LIST = "per layer"
    LAYER_INDEX = "layer index"
    LAYER_SOURCE = "layer that each layer reads"
    PERIOD = "period of layers"
    DENSE_LAYERS = "layers that are dense"
    SHARED_LAYERS = "layers that share another's keys"
    VOCAB = "vocabulary"
    TOKEN_ID = "token id"
    EXPERTS = "experts"
    TOP_K = "experts per token"
    EXPERT_GROUPS = "groups of experts"
    POSITIONS = "positions"
    IMAGE = "image size"
    PATCH = "patch size"
    QUERIES = "queries"
    WINDOW = "side of a window"
    GROUPS = "groups of a norm"
    GRID = "patches a side"
    FEATURES = "sides of feature maps"
    POOLED = "tokens that an image is pooled to"
    OUTWARD = "another part's width"
    MULTIPLIER = "factor on widths"
    FIXED = "fixed"


PATTERNS: tuple[tuple[Kind, str], ...] = (
    (Kind.TOKEN_ID, r"(.*_)?(tokens?|bos|eos|pad|sep|cls|mask|unk|start|end|newline|lang|patch)_(ids?|index|idx)"),
    (Kind.TOKEN_ID, r"(begin_)?suppress_tokens|(bos|eos|pad|sep|unk|mask|lang)_index|decoder_fixing_codes"),
    (Kind.WINDOW, r"(attention_)?window_size(_per_stage)?"),
    (Kind.GROUPS, r"num_groups|norm_num_groups|n_groups|group_(size|width)|gs"),
    (Kind.GRID, r"image_embedding_size"),
    (Kind.FEATURES, r"(.*_)?(feature|feat)_sizes"),
    (Kind.POOLED, r"mm_tokens_per_image"),
    (Kind.FIXED, r"chunk_size_feed_forward|(input|output)_size|type_vocab_size|.*(kernel|stride|window)_(size|dim)"),
    (Kind.FIXED, r"(.*_)?(num|audio|mask_input|patch_embed_input|auxiliary|model_in)_channels|num_channels_out"),
    (Kind.FIXED, r"in_chans|input_channels|(num_input|output_num)_channels|head_out_channels"),
    (Kind.WIDTH, r"x\d_feat_dim|(.*_)?bottleneck_(size|features)|(.*_)?post_conv_in_channels"),
    (
        Kind.FIXED,
        r"(.*_)?(state|act|action|mel|patch|feat|pos|query|atom_feature|bbox|projection_input|keypoint_decoder)_dim",
    ),
    (
        Kind.FIXED,
        r"(model_in|input)_dim|feature_size|(max|min)_depth|base_width|index_head_dim|fine_matching_slice_dim",
    ),
    (
        Kind.FIXED,
        r"patch_embed_hidden_size|.*pos_emb_(height|width|time)|n_layers_per_.*|num_feat_extract_layers|(.*_)?(pre|post)net_layers|num_layers_per_stack",
    ),
    (Kind.DEPTH, r"(.*_)?(num_hidden_layers|num_layers)|n_layers?|layers|(.*_)?depths?|stage_num_blocks"),
    (Kind.DEPTH, r"(.*_)?(encoder|decoder|text|speech)_layers|num_blocks|(.*_)?encoder_blocks|[lrx]_layers"),
    (Kind.DEPTH, r"(.*_)?num_(encoder|decoder|adapter|lstm|dec|attention|spatial|temporal|auxiliary)_layers"),
    (Kind.DEPTH, r"d|block_config"),
    (Kind.DEPTH, r"n_(input|output|recurrent)_layers|blocks_per_stage|(num_)?block_repeats|(c2f|csp)_num_blocks"),
    (Kind.DENSE_LAYERS, r"first_k_dense_replace|num_dense_layers|max_window_layers"),
    (Kind.SHARED_LAYERS, r"num_kv_shared_layers"),
    (
        Kind.DENSE_LAYERS,
        r"num_(first|last)_full_attention_layers|attn_groups|moe_layer_(start|end)_index|num_global_layers",
    ),
    (Kind.LAYER_LIST, r"(.*_)?(layer_types|layers?_block_type|block_types|indexer_types|no_rope_layers)"),
    (Kind.HEADS, r"(.*_)?(key_value|attention)_heads_per_layer"),
    (Kind.LAYER_LIST, r"(.*_)?(.*_per_layer|attn_layers|attention_layers|layers_types|mlp_layer_types)"),
    (Kind.LAYER_SOURCE, r"(.*_)?source_layers"),
    (Kind.LAYER_INDEX, r"(.*_)?ind(ic|ex)es"),
    (Kind.LAYER_INDEX, r"(.*_)?(layer_(ids|index)|layer_idx|attn_idxs|hook_ids|_attention_blocks|return_idx|eval_idx)"),
    (Kind.LAYER_INDEX, r"(.*_)?(feature|select|extract|vision|target|moe|source|cross_attention|hidden)_layers?"),
    (Kind.LAYER_INDEX, r"global_attention_blocks|mlp_only_layers|insert_layer_id|intermediate_hidden_state_indices"),
    (Kind.PERIOD, r"(.*_)?(layer_period|frequency|layer_interval|sparse_step|every_n_layers|layer_group_size)"),
    (Kind.PERIOD, r"(.*_)?(sliding_window_pattern|moe_layer_step|layer_offset|attn_every\w*)"),
    (Kind.TOP_K, r"(.*_)?(experts_per_tok(en)?|moe_top_?k|num_selected_experts|moe_k|top_k_experts)"),
    (Kind.EXPERT_GROUPS, r"n_group|topk_group|num_expert_group"),
    (Kind.EXPERTS, r"(.*_)?(num_(local_|routed_|moe_)?experts|n_routed_experts|zero_expert_num)"),
    (Kind.FIXED, r".*(shared_experts?|expert_num|expert_capacity|per_layer_input_dim)"),
    (Kind.VOCAB, r"(.*_)?(vocab_size|codebook_size|num_embeddings|vocab_size_base|tokens_vocab|num_embeds)"),
    (Kind.VOCAB, r"(.*_)?vocab_size_per_layer_input|num_hash_buckets|.*_group_vocab|entity_vocab_size"),
    (Kind.POSITIONS, r"(.*_)?(max_position_embeddings|n_positions|max_source_positions|n_ctx|context_length)"),
    (Kind.POSITIONS, r"(.*_)?(max_target_positions|max_\w+_positions|max_(en|de)coder_position_embeddings)"),
    (Kind.QUERIES, r"(.*_)?(num_queries|num_object_queries|n_latents|num_latents|num_query_tokens|latent_query_num)"),
    (Kind.QUERIES, r"two_stage_num_proposals|num_detection_tokens|num_denoising"),
    (Kind.IMAGE, r"(.*_)?(image_size|img_size|crop_size)"),
    (Kind.PATCH, r"(.*_)?patch_size"),
    (Kind.MULTIPLIER, r"(width|depth|channel)_multiplier|width_(mult|factor|coefficient)"),
    (Kind.HEADS, r"(.*_)?(attention_heads|n_heads?|num_heads|kv_heads|key_value_heads|key_heads|value_heads)"),
    (Kind.HEADS, r"(.*_)?(num_attention_heads_per_(stage|layer)|self_attn_heads|heads|num_heads_(inner|outer))"),
    (Kind.HEADS, r"mamba_(n_heads|num_heads)|num_(self|cross)_attention_heads|index_n_heads|kv_n_heads"),
    (
        Kind.HEAD_DIM,
        r"(.*_)?(head_dim|d_kv|kv_channels|d_head|dim_head|head_size|headdim|rotary_dim|mrope_section|key_dims?|dim_bbox_projection)",
    ),
    (
        Kind.OUTWARD,
        r"out_hidden_size|(text|llm|lm|language|decoder_text|projector_output)_(hidden_size|dim)|vision_output_dim",
    ),
    (
        Kind.WIDTH,
        r"(.*_)?(hidden_(size|dim|sizes|channels|dimension)|intermediate_(size|dim|channels)|ffn_dim|mlp_dim|dff?)(_\w+)?",
    ),
    (
        Kind.WIDTH,
        r"(.*_)?(d_model|n_embd|d_ff|d_inner|n_inner|inner_dim|ffn_hidden_size|feed_?forward(_size|_dim)?|dim)",
    ),
    (Kind.WIDTH, r"(.*_)?(emb(ed)?(ding)?_(dims?|sizes?)|projection_(dim|size)|proj_(size|dim)|lora_rank|lru_width)"),
    (Kind.WIDTH, r"(.*_)?(embed_dim_per_stage|channel_list|attn_unit_dims|time_step_rank|dt_rank|d_ssm|linear_units)"),
    (Kind.WIDTH, r"(.*_)?(conv_dim|tdnn_dim|num_filters|codevector_dim|size_global|d_latents|predictor_channels)"),
    (
        Kind.WIDTH,
        r"(.*_)?(in|out|output|stem|stage_in|stage_mid|stage_out|downsample|latent|base|conv|encoder_in)_channels",
    ),
    (Kind.WIDTH, r"(.*_)?(upsample_initial|decoder_in|projector_out|neck_out|enc|se|attention|filter|fpn)_channels"),
    (Kind.WIDTH, r"(.*_)?(embed_proj_dim|vit_dim|d_latent|input_dim|output_dims?|proj_dims|num_pos_feats|dim_ff)"),
    (
        Kind.WIDTH,
        r"c|cfg|stage\d|(.*_)?(dims|channels|chs|widths?|stem_(size|width)|num_init_features|growth_rates?|upsample_groups|pooler_output_size|expert_ffn_hidden_size|fusion_hidden_sizes)",
    ),
)
"""(kind, pattern), tested in order against the whole of a field's name and its aliases; the first that fits holds."""

_COMPILED = tuple((kind, re.compile(pattern)) for kind, pattern in PATTERNS)
PRIMARY = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", "model_dim", "width", "emb_dim",
           "hidden_sizes", "embed_dims", "dims", "channels", "widths")  # fmt: skip
"""A config's own width is the first of these that it has."""
SMALLEST_WIDTH = 8
"""A size below this in a width field counts something else (the 3 of an image's channels in a list of them)."""

MOST_STAGES = 6
"""A longer list has an entry per layer."""

Path = tuple[str, ...]
HeadScaling = Literal["heads", "head_dim"]


@dataclass(frozen=True)
class Field:
    """One field of a config or of a config inside it.

    Attributes:
        path: names from the outermost config inwards; the last is the field's own.
        value: a number, or a list of numbers or words; of a multiplier a fraction, too.
        kind: what it counts.
    """

    path: Path
    value: Any
    kind: Kind

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def owner(self) -> Path:
        return self.path[:-1]


@functools.cache
def kind_of(name: str, aliases: tuple[str, ...] = ()) -> Kind | None:
    """What a field of this name counts; None where no pattern fits."""
    for kind, pattern in _COMPILED:
        if any(pattern.fullmatch(known) for known in (name, *aliases)):
            return kind
    return None


def fields_of(config: Any, path: Path = ()) -> Iterator[Field]:
    """The fields of a config and of the configs inside it, those in lists too, whose kind is known."""
    own = items_of(config)
    aliases = getattr(config, "attribute_map", None) or {}
    for name, value in own.items():
        here = (*path, name)
        if _is_nested(value):
            yield from fields_of(value, here)
            continue
        kind = kind_of(name, tuple(alias for alias, real in aliases.items() if real == name))
        if isinstance(value, float) and kind in (Kind.WIDTH, Kind.MULTIPLIER):
            yield Field(here, value, Kind.MULTIPLIER)
        elif _is_size(value) and kind is not None and kind is not Kind.FIXED:
            yield Field(here, value, kind)


def cache_switches(config: Any, path: Path = ()) -> Iterator[Path]:
    """Where the config says that decoding keeps a cache, which training does not."""
    for name, value in items_of(config).items():
        if _is_nested(value):
            yield from cache_switches(value, (*path, name))
        elif name == "use_cache" and value:
            yield (*path, name)


def unset_placeholders(config: Any, path: Path = ()) -> Iterator[Path]:
    """Where a config leaves the id of the token out that stands for an image or a sound."""
    for name, value in items_of(config).items():
        if _is_nested(value):
            yield from unset_placeholders(value, (*path, name))
        elif value is None and re.fullmatch(r"(image|video|audio)_token_(id|index)", name):
            yield (*path, name)


def items_of(config: Any) -> dict[str, Any]:
    """What a config, or a list of configs, holds."""
    if isinstance(config, list | tuple):
        return {str(i): value for i, value in enumerate(config)}
    items = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    return {n: value for n, value in items.items() if isinstance(n, str) and (n[:1] != "_" or n == "_out_indices")}


def _is_nested(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_nested(v) for v in value)
    inside = hasattr(value, "to_dict") or dataclasses.is_dataclass(value)
    return isinstance(value, Mapping) or (inside and not isinstance(value, type))


def _is_size(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(_is_size(v) or isinstance(v, str | bool) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def width_fields(config: Any, scale: HeadScaling = "heads") -> list[Field]:
    """The fields that follow the width: widths, and numbers of heads or sizes of heads. The one key-value head of a
    multi-query attention stays one; a factor on all widths follows where the config has no width."""
    known = list(fields_of(config))
    widths = Kind.WIDTH if any(field.kind is Kind.WIDTH for field in known) else Kind.MULTIPLIER
    kinds = (widths, Kind.OUTWARD, Kind.HEADS if scale == "heads" else Kind.HEAD_DIM)
    fields = [field for field in known if field.kind in kinds]
    several = {field.owner for field in fields if field.kind is Kind.HEADS and max(numbers(field.value)) > 1}
    return [f for f in fields if f.kind is not Kind.HEADS or f.owner not in several or max(numbers(f.value)) > 1]


def depth_fields(config: Any) -> list[Field]:
    """The fields that follow the depth: numbers of layers, and lists with an entry per layer; no number of stages."""
    known = list(fields_of(config))
    stages = {owner: numbers_of_stages([f for f in known if f.owner == owner]) for owner in {f.owner for f in known}}
    fields = [field for field in known if field.kind in (Kind.DEPTH, Kind.LAYER_LIST)]
    return [
        field for field in fields if isinstance(field.value, list | tuple) or field.value not in stages[field.owner]
    ]


def numbers_of_stages(fields: Sequence[Field]) -> set[int]:
    """What a number of layers is where it counts stages, as many as a list beside it has entries. Where all blocks have
    one width, a list of widths is another part's (a neck, convolutions in front): by chance as long as a short stack.

    Args:
        fields: of one config, those of the configs inside it left out.
    """
    alike = any(field.name in PRIMARY and isinstance(field.value, int) for field in fields)
    return stage_counts(f for f in fields if not (alike and f.kind in (Kind.WIDTH, Kind.HEADS)))


def stage_counts(fields: Iterable[Field]) -> set[int]:
    """Lengths of lists with an entry per stage: a number of layers beside them that equals one counts stages. A list of
    widths as long as one with an entry per layer has an entry per layer too."""
    lists = [field for field in fields if isinstance(field.value, list | tuple)]
    depths, layers = ({len(f.value) for f in lists if f.kind is kind} for kind in (Kind.DEPTH, Kind.LAYER_LIST))
    widths = {len(f.value) for f in lists if f.kind in (Kind.WIDTH, Kind.HEADS)}
    return {length for length in depths | (widths - layers) if 1 < length <= MOST_STAGES}


def primary_field(config: Any) -> str | None:
    """The name of a config's own width; None where it has none."""
    own = items_of(config)
    return next((name for name in PRIMARY if name in own and _is_size(own[name]) and own[name]), None)


def scaled_value(field: Field, k: int) -> Any:
    """A field's value in a model k times as wide. Only ever up: a multiple keeps what was divisible."""
    if field.kind is Kind.MULTIPLIER:
        return field.value * k
    smallest = SMALLEST_WIDTH if field.kind in (Kind.WIDTH, Kind.OUTWARD) else 1
    return mapped(field.value, lambda size: size * k if size >= smallest else size)


def numbers(value: Any) -> Iterator[int]:
    """Every number in a nested list of them."""
    if isinstance(value, list | tuple):
        for v in value:
            yield from numbers(v)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def mapped(value: Any, change: Callable[[int], int]) -> Any:
    """`change` on a number, or on every number of a nested list."""
    if isinstance(value, list | tuple):
        return type(value)(mapped(v, change) for v in value)
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value


def with_values(config: Any, changes: Mapping[Path, Any]) -> Any:
    """A copy of the config with other values, whatever derives from them in its constructor left as it is."""
    changed = copy.deepcopy(config)
    for path, value in changes.items():
        owner = changed
        for name in path[:-1]:
            owner = inside(owner, name)
        # past the config's own __setattr__, whose validation sees half of the changes
        (owner if isinstance(owner, MutableMapping) else vars(owner))[path[-1]] = value
    return changed


def inside(config: Any, name: str) -> Any:
    """What a config, or a list of configs, holds under one part of a path; past a config's own rules of access, which
    ask for the layer that a number is read of."""
    if isinstance(config, list | tuple):
        return config[int(name)]
    held = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    return held[name] if name in held or isinstance(config, Mapping) else getattr(config, name)
