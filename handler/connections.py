"""What a handler process keeps between jobs. What is about one job only is in generate.py."""

from handler.comfyui import ComfyUI
from handler.jobs import Jobs
from handler.node_durations import NodeDurations
from handler.settings import Settings
from handler.storage import Storage
from handler.worker_client import ReadyWorker, WorkerClient


class Connections:
    """The connections to the worker, ComfyUI, S3 and the job store. Used by one job at a time.

    Also what is known about the durations of nodes.

    Each is opened when the first job needs it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.jobs = Jobs(settings)
        self.storage = Storage(settings.s3_url_expires_s)
        self.worker = WorkerClient(settings)
        self.durations = NodeDurations(settings.worker_dir)
        self.comfyui: ComfyUI | None = None
        self._comfyui_owner: ReadyWorker | None = None

    def connect_comfyui(self, worker: ReadyWorker) -> ComfyUI:
        """The client of this worker's ComfyUI; that of a ComfyUI before it is closed."""
        if self.comfyui is None or self._comfyui_owner != worker:
            if self.comfyui:
                self.comfyui.close()
            self.comfyui = ComfyUI(worker.base_url, worker.comfyui_version)
            self._comfyui_owner = worker
        return self.comfyui

    def end_job(self, *, has_completed: bool = False) -> None:
        """Report to the worker that the job is over: ComfyUI may sleep. Nothing may come after it.

        `has_completed`: ComfyUI has run it without an error. A worker that drains ends with its
        last job, and may end this process with itself.
        """
        self.worker.end_job(has_completed=has_completed)
        if self.comfyui:
            self.comfyui.end_job()

    def close(self) -> None:
        """Close all of them; a worker that was started for this process alone stops."""
        if self.comfyui:
            self.comfyui.close()
        self.worker.close()
        self.jobs.close()
