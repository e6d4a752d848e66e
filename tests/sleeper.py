"""A process that says nothing and waits for its input to end, and then for ever."""

import sys
import time

sys.stdin.read()
while True:
    time.sleep(60)
