from typing import Any

# What cffi makes of the public headers.
ffi: Any
lib: Any
