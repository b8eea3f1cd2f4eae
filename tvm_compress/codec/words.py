"""The words that the graph section writes as numbers; their order is part of the format.

Both lists grow at their end only. ``OPERATORS`` is also the list of all that a file can call: each
has a meaning in :mod:`tvm_compress.ops.meaning`, none does anything but compute.
"""

from __future__ import annotations

__all__ = ["ATTRIBUTES", "OPERATORS", "WORDS"]

_OPERATORS = """
abs acos acosh add argmax argmin asin asinh astype atan atan2 atanh bitwise_and bitwise_not
bitwise_or bitwise_xor broadcast_to ceil clip concat cos cosh cumsum dequantize divide einsum
equal erf exp expand_dims flatten flip floor floor_divide floor_mod full gather_elements greater
greater_equal image.resize2d isfinite isinf isnan left_shift less less_equal log logical_and
logical_not logical_or logical_xor matmul max maximum mean min minimum mod multiply negative
nn.adaptive_avg_pool1d nn.adaptive_avg_pool2d nn.adaptive_avg_pool3d nn.avg_pool1d nn.avg_pool2d
nn.avg_pool3d nn.batch_flatten nn.batch_norm nn.conv1d nn.conv1d_transpose nn.conv2d
nn.conv2d_transpose nn.conv3d nn.gelu nn.gelu_tanh nn.group_norm nn.layer_norm nn.leakyrelu
nn.log_softmax nn.max_pool1d nn.max_pool2d nn.max_pool3d nn.pad nn.prelu nn.relu nn.rms_norm
nn.selu nn.silu nn.softmax nn.softplus not_equal one_hot ones ones_like permute_dims power prod
quantize repeat reshape right_shift round rsqrt shape_of shape_to_tensor sigmoid sign sin sinh
split sqrt square squeeze stack std strided_slice subtract sum take tan tanh tile trunc variance
where zeros zeros_like
"""

_ATTRIBUTES = """
AdaptivePool1D AdaptivePool2D AdaptivePool3D ArgmaxArgmin Argsort Astype Attention BatchNorm
Concat Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose Dropout Einsum
ExpandDims Flip GatherElements GatherND GroupNorm IndexPut Init InstanceNorm LayerNorm
LayoutTransform LeakyRelu Matmul Meshgrid OneHot PRelu Pad PermuteDims PixelShuffle Pool1D
Pool2D Pool3D Quantize RMSNorm ROIAlign ROIPool Repeat Resize2D ReverseSequence Scanop
ScatterElements ScatterND SliceScatter Softmax Softplus Sort Split Squeeze Stack Statistical
StridedSlice Take Tile TopK Trilu
"""

_WORDS = """
global_symbol main num_input NCHW NHWC NCW NWC NCDHW NDHWC OIHW HWIO OHWI OIW OIDHW IOHW IOW CHW
float32 float16 float64 bfloat16 int8 uint8 int16 uint16 int32 uint32 int64 uint64 bool constant
reflect replicate linear nearest_neighbor cubic half_pixel align_corners asymmetric round floor
ceil clip fast accumulate aligned alpha assume_inbound axes axis batch_axis batch_dims beta
causal_mask ceil_mode center channel_axis coordinate_transformation_mode count_include_pad
cubic_alpha cubic_exclude data_layout depth descending dilation dtype epsilon exclusive
extrapolation_value groups index_map indexing indices_or_sections k keepdims kernel_layout
largest layout method mode momentum num_groups out_dtype out_layout output_padding output_size
pad_mode pad_value pad_width padding pool_size pooled_size rate reduction repeats ret_type roi
rounding_method sample_ratio scale seq_axis spatial_scale strides subscripts threshold training
upscale_factor window_size
"""

OPERATORS: tuple[str, ...] = (
    "tvm_compress.codebook",
    *(f"relax.{name}" for name in _OPERATORS.split()),
    "tvm_compress.lookup",
    "tvm_compress.requantize",
    "tvm_compress.softmax",
)

# Node types of attributes that a file may make; they hold numbers and strings, nothing else.
ATTRIBUTES: tuple[str, ...] = (
    "ir.DictAttrs",
    *(f"relax.attrs.{name}Attrs" for name in _ATTRIBUTES.split()),
)

WORDS: tuple[str, ...] = tuple(_WORDS.split())
