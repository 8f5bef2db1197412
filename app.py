"""The page, as a hosted Space starts it. On your own machine: `vdmreason app`."""

import os

from vdmreason.ui import launch

if __name__ == "__main__":
    hosted = "SPACE_ID" in os.environ
    launch(host="0.0.0.0" if hosted else "127.0.0.1", port=int(os.environ.get("PORT", "7860")))
