"""``python -m tvm_compress`` is ``tvm-compress``."""

from __future__ import annotations

from tvm_compress.cli import main

if __name__ == "__main__":
    main()
