"""Loaded first by every process that a test starts: hides transformers, which users do not have and open_clip imports.

So the tools are tested as they run for a user, and each process starts in about half the time.
"""

import sys

sys.modules["transformers"] = None
