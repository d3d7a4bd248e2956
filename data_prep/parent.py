"""A process that ends when the one that started it has ended."""

import multiprocessing
import os
import threading
import time

from data_prep.errors import EXIT_FAILURE

POLL_SECONDS = 1.0


def end_with_parent() -> None:
    """Starts a thread that ends this process once its parent has ended, however it ended."""
    parent, parent_pid = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if parent is not None:
            parent.join()
        else:
            # Another program started this process: an orphan is handed to a new parent.
            while os.getppid() == parent_pid:
                time.sleep(POLL_SECONDS)
        os._exit(EXIT_FAILURE)

    threading.Thread(target=watch, daemon=True).start()
