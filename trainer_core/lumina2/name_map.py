"""Names of the transformer's weights in diffusers and in the native (ComfyUI) layout."""

from __future__ import annotations

import re
