# Reads: $pack (a tar file), $place (a folder on this node's own disk), $program (Python's path inside the
# environment). Leaves $staged: the unpacked environment's Python, or empty where the shared one has to serve.
# One task per node unpacks while the others wait at the lock. Only a folder with a file `complete` is used: it is
# written last, and names the boot, as nothing is synced to the disk and a power loss may leave empty files.

environment_log() { printf '=== launch.stage_env: %s ===\n' "$1" >&2; }

environment_refuse() {
    environment_log "$1; using the shared environment"
    return 1
}

# Number and size of the files, without byte code, which Python adds.
environment_count() {
    find "$1/" ! -type d ! -name '*.pyc' ! -name complete ! -name in-use ! -name 'checked-*' -printf '%s\n' 2>/dev/null |
        awk '{ number += 1; size += $1 } END { print number + 0, size + 0 }'
}

environment_is_complete() {
    [ "$(cut -d ' ' -f 1 "$1/complete" 2>/dev/null)" = "$boot" ] || return 1
    checked=$1/checked-${SLURM_JOB_ID:-$PPID}-${SLURM_RESTART_COUNT:-0}
    [ -e "$checked" ] && return 0
    # A cleaner of the node's disk may have removed a part.
    [ "$(cat "$1/complete")" = "$boot $(environment_count "$1")" ] || return 1
    rm -f "$1"/checked-*
    touch "$checked"
    environment_log "using $1 from an earlier start"
}

# A venv names the Python beneath it by its path.
environment_move() {
    if [ -d "$partial/base" ]; then
        sed -i "s|^home *=.*|home = $1/base/bin|" "$partial/environment/pyvenv.cfg" || return 1
    fi
    mv "$partial" "$1"
}

environment_unpack() {
    partial=$home/partial
    rm -rf "$partial"
    # Damaged, perhaps under a task of another job.
    [ ! -e "$1" ] || flock --nonblock "$1" rm -rf "$1" || environment_refuse "$1 is in use, and not whole" || return 1
    # Of other contents, what no process uses.
    for other in "$home"/*/; do
        [ ! -e "$other" ] || flock --nonblock "$other" rm -rf "$other"
    done
    free_kib=$(df -Pk "$home" | awk 'NR == 2 { print $4 }')
    needed_kib=$(($(stat -L -c %s "$pack") / 1024 * 11 / 10))
    [ "$free_kib" -gt "$needed_kib" ] ||
        environment_refuse "$home has $free_kib KiB free, $needed_kib are needed" || return 1
    mkdir "$partial"
    tar -xf "$pack" -C "$partial" &
    unpacking=$!
    if ! wait "$unpacking" || ! environment_move "$1"; then
        rm -rf "$partial"
        environment_refuse "$pack could not be unpacked in $home" || return 1
    fi
    # The program may be a link to the system's, which starts where nothing may be executed.
    printf '#!/bin/sh\n' > "$1/probe"
    chmod 700 "$1/probe"
    if ! "$1/probe" || ! "$1/$program" -I -c "import ctypes, ssl, sys; sys.exit(not sys.prefix.startswith('$1'))"; then
        rm -rf "$1"
        environment_refuse "its Python does not start in $home" || return 1
    fi
    if ! { printf '%s\n' "$boot $(environment_count "$1")" > "$1/complete.new" && mv "$1/complete.new" "$1/complete"; }; then
        rm -rf "$1"
        environment_refuse "$home takes no further file" || return 1
    fi
    touch "$1/checked-${SLURM_JOB_ID:-$PPID}-${SLURM_RESTART_COUNT:-0}"
    environment_log "unpacked in $1"
}

environment_stage() {
    case $place in *\$* | '') environment_refuse "$place is no folder on this node" || return ;; esac
    [ -d "$place" ] && [ -w "$place" ] || environment_refuse "$place is no folder on this node" || return
    [ -O "$pack" ] || environment_refuse "$pack is not there, or another user's" || return
    home=$place/mgpt4-env-$(id -u)
    mkdir -m 700 "$home" 2>/dev/null
    [ -d "$home" ] && [ ! -L "$home" ] && [ -O "$home" ] || environment_refuse "$home is another user's" || return
    chmod 700 "$home" || return
    boot=$(cat /proc/sys/kernel/random/boot_id)
    name=${pack##*/}
    folder=$home/${name%.tar}
    # A shell ends where exec cannot open its file.
    touch "$home/lock" || environment_refuse "$home takes no file" || return
    exec 8> "$home/lock"
    flock 8 || environment_refuse "$home cannot be locked" || return
    if environment_is_complete "$folder" || environment_unpack "$folder"; then
        # Held by the task to its end: see above, where others are removed.
        exec 7< "$folder" && flock --shared 7 && staged=$folder/$program
    fi
    exec 8>&-
}

staged=
if [ -n "$pack" ]; then
    trap 'kill "$unpacking" 2>/dev/null; exit 75' @SIGNALS@
    previous=$(umask)
    umask 077
    environment_stage
    umask "$previous"
    trap - @SIGNALS@
fi
