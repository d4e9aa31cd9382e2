# SPDX-License-Identifier: MIT
"""`python -m miaobi` is the command line."""

from __future__ import annotations

from miaobi.cli import main

if __name__ == "__main__":
    main()
