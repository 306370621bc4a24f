"""Run a notebook in a kernel of its own, from beginning to end."""
import asyncio
import os
from pathlib import Path
from threading import Thread

from nbclient import NotebookClient

from tools.notebooks import is_skipped


class LessonClient(NotebookClient):
    "A notebook client that leaves skipped cells as they are, outputs included"

    def __init__(self, nb, folder, slow=False, **hooks):
        # `JUPYTER_PREFER_ENV_PATH` sees to it that "python3" is the kernel of this environment, not one of the user's.
        os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
        super().__init__(nb, kernel_name="python3", timeout=None, record_timing=False, coalesce_streams=True,
                         store_widget_state=False,
                         extra_arguments=["--log-level=ERROR"],   # no remarks about the kernel's own connection
                         resources={"metadata": {"path": str(Path(folder).resolve())}}, **hooks)
        self.slow = slow

    async def async_execute_cell(self, cell, cell_index, **options):
        "Execute one cell, unless it is marked `#| eval: false` or `#| slow`"
        if cell.cell_type == "code" and is_skipped(cell, self.slow):
            return cell
        return await super().async_execute_cell(cell, cell_index, **options)


def run(client, environment, tick=lambda: None, every=10.0):
    """Run the client's notebook, calling `tick` every few seconds; Ctrl-C ends the kernel first, then interrupts.

    The client works in a second thread, because in the main one nbclient would take the signal for itself."""
    os.environ.update(environment)
    loop = asyncio.new_event_loop()
    task = loop.create_task(client.async_execute())
    worker = Thread(target=_finish, args=(loop, task))
    worker.start()
    try:
        while worker.is_alive():
            worker.join(every)
            if worker.is_alive():
                tick()
    except BaseException:
        client.shutdown_kernel = "immediate"
        if worker.is_alive():
            loop.call_soon_threadsafe(task.cancel)
        worker.join()
        raise
    return task.result()


def _finish(loop, task):
    "Run the loop until the task is done, however it ends: `task.result()` tells"
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    if not task.cancelled():
        task.exception()   # looked at, so that asyncio does not complain after an interrupt
