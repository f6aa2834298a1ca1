#!/usr/bin/env bash
# The on-start script of a rented GPU host, such as Vast.ai: a container that starts as root with a
# shell script, and with settings in its environment. It installs this project and ComfyUI unless
# they are there, keeps `serve` running, and starts a PyWorker in front of it if PYWORKER_REPO is
# set. docs/host.md lists the variables.
#
# It ends with the status of `serve`: 0 after SIGTERM, 2 for invalid variables, 3 on a machine that
# is unfit for jobs. It restarts `serve` after any other status.
set -euo pipefail

WORKSPACE_DIR=${WORKSPACE_DIR:-/workspace}
PROJECT_DIR=${PROJECT_DIR:-/opt/lambda-comfyui}
LOG_DIR=${LOG_DIR:-/var/log/lambda-comfyui}
export JOBS_DB=${JOBS_DB:-$WORKSPACE_DIR/lambda-comfyui/jobs.sqlite}
API_PORT=${API_PORT:-18288}
FIRST_PAUSE_S=1
LONGEST_PAUSE_S=60
# A run that lasted for as long is not a failed start: the pauses begin again.
SOUND_RUN_S=300

serve_pid=
pyworker_pid=
stopping=

say() { echo "on-start: $*" | tee -a "$LOG_DIR/on-start.log"; }

# Run a command whose output is in the log, too.
logged() { "$@" 2>&1 | hide_passwords | tee -a "$LOG_DIR/on-start.log"; }

hide_passwords() { sed -u -E 's#//[^/@]*@#//…@#g'; }

fail() {
    say "$1"
    exit "${2:-1}"
}

check_variables() {
    if [[ -n ${PYWORKER_REPO:-} && -n ${API_TOKEN:-} ]]; then
        fail "API_TOKEN and PYWORKER_REPO are both set, but a PyWorker calls the API without a token: unset one of them" 2
    fi
    if [[ -z ${PYWORKER_REPO:-} && -n ${PYWORKER_REF:-} ]]; then
        fail "PYWORKER_REF is set without PYWORKER_REPO, the repository to clone" 2
    fi
    # Without a token, serve listens on loopback alone, which is where a PyWorker calls it.
    if [[ -n ${API_TOKEN:-} ]]; then
        export API_ADDRESS=${API_ADDRESS:-0.0.0.0}
    fi
}

install_packages() {
    local missing=()
    command -v git > /dev/null || missing+=(git)
    python_interpreter > /dev/null || missing+=(python3)
    "$(python_interpreter || echo false)" -c 'import ensurepip, venv' 2> /dev/null || missing+=(python3-venv)
    if ((${#missing[@]})); then
        say "installing ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        logged apt-get update -qq || fail "cannot read the list of packages"
        logged apt-get install -qq -y --no-install-recommends ca-certificates "${missing[@]}" > /dev/null ||
            fail "cannot install ${missing[*]}: see $LOG_DIR/on-start.log"
    fi
}

# The first Python that is new enough.
python_interpreter() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

# clone REPOSITORY REF FOLDER: REF is a branch, a tag or a commit; empty means the default branch.
clone() {
    local name
    name=$(hide_passwords <<< "$1")
    if [[ ! -d $3/.git ]]; then
        logged git clone --quiet -- "$1" "$3" || fail "cannot clone $name"
    fi
    if [[ -n $2 ]]; then
        logged git -C "$3" fetch --quiet --tags origin || say "cannot fetch $name: using what is in $3"
        git -C "$3" checkout --quiet --detach "origin/$2" 2> /dev/null ||
            git -C "$3" checkout --quiet --detach "$2" 2> /dev/null ||
            fail "$name has no branch, tag or commit $2"
    fi
    say "$3 is at $(git -C "$3" rev-parse --short HEAD)"
}

# Sets RUNTIME to the command line of the project: the image's, or that of a virtual environment.
install_project() {
    if [[ -x /opt/handler/bin/python && -d /var/task/runtime ]]; then
        say "the image has the project"
        cd /var/task
        RUNTIME=(/opt/handler/bin/python -m runtime)
        return
    fi
    if [[ ! -x $PROJECT_DIR/.venv/bin/lambda-comfyui ]]; then
        install_packages
        if [[ ! -f $PROJECT_DIR/pyproject.toml ]]; then
            [[ -n ${LAMBDA_COMFYUI_REPO:-} ]] ||
                fail "there is no project in $PROJECT_DIR: set LAMBDA_COMFYUI_REPO to its git repository" 2
            clone "$LAMBDA_COMFYUI_REPO" "${LAMBDA_COMFYUI_REF:-}" "$PROJECT_DIR"
        fi
        local python
        python=$(python_interpreter) || fail "needs Python 3.11 or later: choose a newer image, such as Ubuntu 24.04"
        say "installing the project into $PROJECT_DIR/.venv"
        logged "$python" -m venv "$PROJECT_DIR/.venv"
        local pip=("$PROJECT_DIR/.venv/bin/python" -m pip install --quiet --disable-pip-version-check)
        # The locked packages, as in the Makefile.
        logged "${pip[@]}" --require-hashes -r "$PROJECT_DIR/infra/locks/local.txt" ||
            fail "cannot install the packages of the project"
        logged "${pip[@]}" --no-deps --editable "$PROJECT_DIR" || fail "cannot install the project"
    fi
    cd "$PROJECT_DIR"
    RUNTIME=("$PROJECT_DIR/.venv/bin/lambda-comfyui")
    logged "${RUNTIME[@]}" install || fail "cannot install ComfyUI"
}

# In a session of its own: a start script may leave its server in the background.
start_pyworker() {
    local folder=$WORKSPACE_DIR/vast-pyworker
    install_packages
    clone "$PYWORKER_REPO" "${PYWORKER_REF:-}" "$folder"
    local start=(bash "$folder/start_server.sh")
    if [[ ! -f $folder/start_server.sh ]]; then
        [[ -f $folder/worker.py ]] || fail "$folder has neither start_server.sh nor worker.py"
        [[ -x $WORKSPACE_DIR/worker-env/bin/python ]] || "$(python_interpreter)" -m venv "$WORKSPACE_DIR/worker-env"
        # Its server imports distutils, which setuptools has.
        local packages=(setuptools vastai)
        [[ -f $folder/requirements.txt ]] && packages+=(-r "$folder/requirements.txt")
        logged "$WORKSPACE_DIR/worker-env/bin/python" -m pip install --quiet --disable-pip-version-check \
            "${packages[@]}" || fail "cannot install the packages of the PyWorker"
        start=("$WORKSPACE_DIR/worker-env/bin/python" worker.py)
    fi
    say "starting the PyWorker: ${start[*]}"
    export WORKSPACE_DIR MODEL_LOG=$PYWORKER_LOG
    (cd "$folder" && exec setsid "${start[@]}") > >(tee -a "$LOG_DIR/pyworker.log") 2>&1 &
    pyworker_pid=$!
}

# A trapped signal ends `wait` before the process has ended, or with the signal's status just as it
# ends. The last `wait` gives its own status, as often as it is asked.
wait_for() {
    wait "$1" || true
    while kill -0 "$1" 2> /dev/null; do
        wait "$1" || true
    done
    wait "$1"
}

# The last lines say why serve ended. A process that it left behind may hold the log open for ever.
wait_for_last_lines() {
    local _
    for _ in {1..20}; do
        kill -0 "$1" 2> /dev/null || return 0
        sleep 0.1
    done
}

keep_serving() {
    local pause_s=$FIRST_PAUSE_S began status log_pid
    while [[ -z $stopping ]]; do
        began=$SECONDS
        status=0
        exec 3> >(tee -a "$LOG_DIR/serve.log")
        log_pid=$!
        "${RUNTIME[@]}" serve >&3 2>&3 &
        serve_pid=$!
        wait_for "$serve_pid" || status=$?
        serve_pid=
        exec 3>&-
        wait_for_last_lines "$log_pid"
        [[ -z $stopping && $status != 0 ]] || return "$status"
        case $status in
            2) fail "serve refuses its settings: correct the variable that it names" 2 ;;
            3) return 3 ;;
        esac
        ((SECONDS - began < SOUND_RUN_S)) || pause_s=$FIRST_PAUSE_S
        say "serve ended with status $status and starts again in $pause_s s"
        sleep "$pause_s" &
        wait $! || true
        pause_s=$((pause_s * 2 < LONGEST_PAUSE_S ? pause_s * 2 : LONGEST_PAUSE_S))
    done
}

report_unfit_machine() {
    say "this machine is unfit for jobs: its GPU, a disk or its memory failed (see $LOG_DIR/serve.log)"
    say "its jobs go to other machines. Destroy this instance and rent another: a restart does not mend it"
    # The PyWorker reports the fault, so that its service replaces the machine.
    while [[ -z $stopping && -n $pyworker_pid ]] && kill -0 -- "-$pyworker_pid" 2> /dev/null; do
        sleep 5 &
        wait $! || true
    done
}

main() {
    mkdir -p "$LOG_DIR" "$WORKSPACE_DIR" "$(dirname "$JOBS_DB")"
    trap 'stopping=yes; [[ -z $serve_pid ]] || kill -TERM "$serve_pid" || true' TERM INT
    # The server of a PyWorker may outlive its start script, in the same process group.
    trap '[[ -z $pyworker_pid ]] || kill -TERM -- "-$pyworker_pid" 2> /dev/null || true' EXIT
    check_variables
    install_project
    if [[ -n ${PYWORKER_REPO:-} ]]; then
        # The file that Vast.ai's own PyWorker for ComfyUI follows. It reads the file from its start,
        # so lines of an earlier run would mislead it.
        export PYWORKER_LOG=${PYWORKER_LOG:-/var/log/portal/api-wrapper.log}
        mkdir -p "$(dirname "$PYWORKER_LOG")"
        : > "$PYWORKER_LOG"
        start_pyworker
    fi
    local port_variable=VAST_TCP_PORT_$API_PORT
    if [[ -n ${!port_variable:-} ]]; then
        say "port $API_PORT is ${PUBLIC_IPADDR:-this machine}:${!port_variable} from outside"
    fi
    local status=0
    keep_serving || status=$?
    if ((status == 3)); then
        report_unfit_machine
    fi
    exit "$status"
}

main "$@"
