"""`python -m bench` measures the gateways side by side."""

from __future__ import annotations

import sys

from bench.gateways import main

sys.exit(main())
