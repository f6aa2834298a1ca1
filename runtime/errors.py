"""The errors of `runtime`, and the exit status that each one gives a command.

A class stays in the module that raises it. A job's errors are not here: they are answers to an
event, and events/errors.py has them. A wrong environment variable is a SettingsError of
handler/settings.py.

    LambdaComfyUIError             exit status 1: the command could not do its work
    ├── UsageError                 exit status 2: an argument, a variable or a file is wrong
    │   ├── EnvVarsError           sam/env_vars_file.py   the file of --env-vars
    │   ├── HookError              hooks.py               WORKER_HOOKS
    │   ├── LockFileError          custom_nodes/lock_file.py
    │   ├── ManifestError          models/errors.py       a manifest of models
    │   ├── MissingExtraError      extras.py              an extra of the package is not installed
    │   ├── OutFolderError         commands/example.py    the folder of --out
    │   ├── OwnershipError         worker/ownership.py    a folder of the worker cannot be used
    │   ├── PinError               provisioning.py        PROVISIONING_SCRIPT
    │   ├── PoolError              lambda_host/pool.py    the host's workers, one for each GPU
    │   └── TemplateError          sam/template.py        the file of --template
    ├── ArchiveError               worker/compile_archive.py
    ├── BadBodyError               fleet/protocol.py      answered with HTTP 400
    ├── ComfyUIStartError          worker/comfyui_process.py
    │   └── UnfitDeviceError
    ├── CompileStoreError          worker/compile_store.py
    ├── CustomNodeError            custom_nodes/install.py
    ├── DownloadError              models/errors.py       a model file; a status for each reason
    │   ├── AccessDeniedError
    │   ├── ConnectionLostError
    │   ├── DamagedFileError
    │   ├── DiskFullError
    │   ├── ServerFailedError
    │   ├── SourceChangedError
    │   ├── SourceMissingError
    │   ├── TargetError
    │   ├── TooSlowError
    │   ├── WrongHashError
    │   └── WrongSizeError
    ├── EventFileError             commands/invoke.py     the file of --event
    ├── ExtensionRefusedError      lambda_host/extensions.py      answered with HTTP 403
    ├── ExtensionsApiError         commands/extension.py
    ├── FleetStoreError            fleet/store.py
    ├── HostBusyError              lambda_host/host.py            answered with HTTP 429
    ├── IllegalMove                worker/states.py       a defect of the worker
    ├── InstallError               installation/command.py
    ├── InvokeRefusedError         lambda_host/invoke_api.py      answered with HTTP 4xx or 503
    ├── LocalS3Error               local_s3.py
    ├── MachinesError              fleet/machines.py
    ├── NotGrantedError            fleet/member_front.py  answered with HTTP 401 or 503
    ├── OwnRunError                worker/own_run.py      a benchmark or a warm-up
    ├── PackageError               custom_nodes/packages.py
    │   └── PipError
    ├── ProvisioningError          provisioning.py
    ├── QueueError                 lambda_host/sqs_queue.py
    ├── RepositoryError            custom_nodes/repository.py
    ├── StartError                 commands/listening.py
    ├── UnreadableWorkerError      commands/clean.py
    ├── UnresolvableError          sam/intrinsics.py      the template's variable is omitted
    └── UpdateError                commands/update_workers.py

cli.py prints the message of any that reaches it, one line on stderr without a traceback.
"""

from typing import ClassVar


class LambdaComfyUIError(Exception):
    """The root. The message names what is wrong, the file or variable, and the fix."""

    exit_status: ClassVar[int] = 1


class UsageError(LambdaComfyUIError):
    """The user has to correct an argument, a variable or a file first."""

    exit_status = 2
