import sys, numpy as np
from gguf import quants, GGMLQuantizationType as T
HALVES = dict(Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2],
              Q6_K=[208], IQ4_NL=[0], IQ4_XS=[0], TQ2_0=[64])
random = np.random.default_rng(1)
for name in ["F16", "BF16", *HALVES, "MXFP4"]:
    elements, n_bytes = quants.GGML_QUANT_SIZES[T[name]]
    n = {1: 64, 32: 16, 256: 3}[elements]
    blocks = random.integers(0, 256, (n, n_bytes), dtype=np.uint8)
    for at in HALVES.get(name, []):  # finite, of either sign, one subnormal
        halves = (random.standard_normal(n) * .01).astype(np.float16)
        halves[0] = 3e-6
        blocks[:, at:at + 2] = halves.view(np.uint8).reshape(n, 2)
    if name == "MXFP4":
        blocks[:8, 0] = [0, 1, 2, 100, 127, 200, 251, 255]
    if name in ("F16", "BF16"):
        halves = random.standard_normal(n).astype(np.float32)
        blocks = (halves.astype(np.float16) if name == "F16" else (halves.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
        blocks = blocks.reshape(n, n_bytes)
    values = quants.dequantize(blocks, T[name]).astype("<f4")
    open(f"{sys.argv[1]}/{name}.bin", "wb").write(blocks.tobytes() + values.tobytes())
