"""What a fork has to wait for: an import, or a process being started, in another thread."""

from __future__ import annotations

import os
import threading
from typing import Final

unforked: Final = threading.Lock()
"""Held while a module is loaded late, which a forked child could never finish, and while a process is started, whose
pipes a forked child would hold open."""

# Here and at once: hooks that were registered while a fork waits would be half in force.
os.register_at_fork(before=unforked.acquire, after_in_parent=unforked.release, after_in_child=unforked.release)
