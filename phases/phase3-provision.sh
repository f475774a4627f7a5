#!/bin/sh
# Phase 3 of 3: makes the system the one that tests run in. Runs on the new disk, called by rc.d/pfi as /mnt/phase3.sh; on a
# running VM by hand or over ssh: PFI_MEDIA=<directory with vm.conf and the keys> PFI_POWEROFF=no sh phase3-provision.sh
# Every setting is made where it is missing and checked after it, so a second run changes nothing but root's password.
#
# In this order: what tests need (doas, directories, Go, git, bash, services); then who gets in (keys, sshd, root's
# password), so that only a finished system lets anybody in; rc.d/pfi goes last, because a failed phase 3 must be found again
# at the next boot.
set -eu
umask 022
HOME=/root
PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin # rc's PATH lacks /usr/local, and its HOME is /
export HOME PATH
cd /
phase=3
data=${PFI_MEDIA:-/mnt}

# shared:mark
# Prints a line on the console, and on the serial line too, because the console may be the screen. While the serial line
# is the console, its device /dev/cuaa0 refuses to open; that is ignored.
mark() { # LINE
    printf '%s\n' "$1"
    (printf '%s\n' "$1" >/dev/cuaa0) 2>/dev/null || true
}
# end shared:mark

# shared:errors
# stderr goes to the console and, for the current step, to a file. If the step fails, its last lines are repeated with
# mark, so that the serial line shows the reason too. (A line of the step before may be among them: tee runs beside it.)
errors= # the directory

die() { # WHAT-HAPPENED
    printf '%s\n' "$*" >&2
    exit 1
}

keep_errors() {
    errors=$(mktemp -d /tmp/phase.XXXXXX) || { mark 'cannot write to /tmp' && exit 1; }
    mkfifo "$errors/pipe"
    {
        trap '' HUP INT TERM # a signal for all must not end tee: the shell would die of the broken pipe, without a word
        tee -a "$errors/text" <"$errors/pipe" >&2
        : >"$errors/end"
    } &
    exec 2>"$errors/pipe"
}

end_errors() { # waits until tee has written everything, 5 s at most: a program in the background may keep the pipe open
    [ -n "$errors" ] || return 0
    exec 2>&1
    waited=0
    until [ -e "$errors/end" ] || [ "$waited" -ge 5 ]; do
        sleep 1
        waited=$((waited + 1))
    done
}
# end shared:errors

# shared:phase
# Every phase names its steps, ends in a bare line that says how it went, and powers off either way: the boot would go on to
# a login prompt, and nobody is there to log in. PFI_POWEROFF=no is for a phase run by hand or over ssh.
current=start
complete=no

step() { # NUMBER TEXT
    current=$2
    : >"$errors/text"
    mark "STEP $1: $2"
}

finish() {
    trap - EXIT HUP INT TERM PIPE
    end_errors
    sync
    printf '\n'
    if [ "$complete" = yes ]; then
        mark "DONE WITH PHASE $phase."
    else
        [ -z "$errors" ] || tail -n 5 "$errors/text" | cut -c 1-300 | while IFS= read -r line || [ -n "$line" ]; do mark "$line"; done
        mark "PHASE $phase FAILED: $current"
    fi
    [ -z "$errors" ] || rm -rf "$errors"
    if [ "${PFI_POWEROFF:-yes}" != no ]; then
        poweroff || true
        sleep 86400 # poweroff returns at once; a script that ended now would let the boot go on meanwhile
    fi
    [ "$complete" = yes ] || exit 1
    exit 0
}
trap finish EXIT
trap 'exit 1' HUP INT TERM PIPE
keep_errors
# end shared:phase

# shared:ensure_line
append_line() { # FILE LINE: the file's last line may lack its newline
    if [ -s "$1" ] && [ -n "$(tail -c 1 "$1")" ]; then
        printf '\n' >>"$1"
    fi
    printf '%s\n' "$2" >>"$1"
}

ensure_line() { # FILE LINE: appends the line unless it is there
    if [ ! -f "$1" ] || ! grep -qxF -e "$2" "$1"; then
        append_line "$1" "$2"
    fi
}
# end shared:ensure_line

# shared:retry
retry() { # WHAT COMMAND...: five tries in about two minutes of waiting
    what=$1
    shift
    for pause in 5 15 30 60 none; do
        if "$@"; then
            return 0
        fi
        [ "$pause" != none ] || break
        printf '%s: failed, again in %s s\n' "$what" "$pause"
        sleep "$pause"
    done
    printf '%s: failed five times\n' "$what" >&2
    return 1
}
# end shared:retry

# shared:keys
# The key that may log in is added to those that are there; the host key is the one that the other side already knows.
install_keys() { # ROOT, empty for the running system
    mkdir -p "$1/root/.ssh"
    while IFS= read -r key || [ -n "$key" ]; do
        [ -z "$key" ] || ensure_line "$1/root/.ssh/authorized_keys" "$key"
    done <"$data/authorized_keys"
    chmod go-w "$1/root"
    chmod 0700 "$1/root/.ssh"
    chmod 0600 "$1/root/.ssh/authorized_keys"
    install -m 0600 "$data/hostkey" "$1/etc/ssh/ssh_host_ed25519_key"
    install -m 0644 "$data/hostkey.pub" "$1/etc/ssh/ssh_host_ed25519_key.pub"
    derived=$(ssh-keygen -y -f "$1/etc/ssh/ssh_host_ed25519_key" | awk '{ print $2 }')
    given=$(awk '{ print $2 }' "$1/etc/ssh/ssh_host_ed25519_key.pub")
    if [ -z "$derived" ] || [ "$derived" != "$given" ]; then
        die 'hostkey and hostkey.pub do not belong together'
    fi
}
# end shared:keys

# shared:root_password
# Root's password is vm.conf's. No variable holds it on its way, so that sh -x does not show it. After it, root's field must
# hold a hash; the shortest kind has 13 characters, "*" means none.
set_root_password() { # ROOT, empty for the running system
    sed -n 's/^VM_ROOT_PASSWORD=//p' "$data/vm.conf" | pw ${1:+-V "$1/etc"} usermod root -h 0
    awk -F: '$1 == "root" && length($2) > 12 { found = 1 } END { exit !found }' "$1/etc/master.passwd" || die "root's password was not set"
}
# end shared:root_password

clone_dports() {
    rm -rf /usr/dports.part
    git clone --depth=1 https://github.com/DragonFlyBSD/DPorts.git /usr/dports.part
}

enable_service() { # NAME: the last assignment in rc.conf wins
    case $(sed -n "s/^$1_enable=//p" /etc/rc.conf | tail -n 1 | tr -d "\"'") in
        [Yy][Ee][Ss]) ;;
        *) append_line /etc/rc.conf "$1_enable=\"YES\"" ;;
    esac
}

step 1 'read the settings'
for file in vm.conf authorized_keys hostkey hostkey.pub; do
    [ -s "$data/$file" ] || die "$data has no $file"
done
dports=$(sed -n 's/^VM_DPORTS_CLONE=//p' "$data/vm.conf")

step 2 'let root run commands through doas'
ensure_line /usr/local/etc/doas.conf 'permit nopass keepenv root' # the last rule that matches decides
chmod 0600 /usr/local/etc/doas.conf
doas -C /usr/local/etc/doas.conf || die 'doas refuses its configuration'
[ "$(doas id -u)" = 0 ] || die 'doas does not run a command as root'

step 3 'make the directories for builds'
mkdir -p /build/synth/Workers /build/Workers /usr/dports

if [ "$dports" != yes ]; then
    step 4 'leave /usr/dports as it is: no DPorts clone is asked for'
elif git -C /usr/dports rev-parse --verify HEAD >/dev/null 2>&1; then
    step 4 'keep the DPorts tree that is there'
else
    step 4 'clone DPorts into /usr/dports'
    retry 'git clone' clone_dports || die 'the DPorts tree cannot be downloaded'
    rmdir /usr/dports || die '/usr/dports is not empty, and not a clone of DPorts'
    mv /usr/dports.part /usr/dports
fi
[ "$dports" != yes ] || mkdir -p /usr/distfiles # where builds from the ports tree keep what they download

step 5 'set up Go'
# In Go's own settings file, where every shell, doas and ssh command finds them. GOTOOLCHAIN stays as it is: a project that
# asks for a newer Go than the package then gets it by download.
go env -w GOPATH=/root/go GOCACHE=/root/.cache/go-build
mkdir -p /root/go/bin /root/.cache/go-build
[ "$(go env GOPATH)" = /root/go ] || die 'GOPATH is not /root/go'
[ "$(go env GOCACHE)" = /root/.cache/go-build ] || die 'GOCACHE is not /root/.cache/go-build'
# Installed Go tools are found by logins through .profile, and by commands over ssh through ~/bin, which login.conf names.
# shellcheck disable=SC2016 # .profile expands it
ensure_line /root/.profile 'PATH=$PATH:/root/go/bin; export PATH'
[ -e /root/bin ] || [ -h /root/bin ] || ln -s go/bin /root/bin

step 6 'let git accept files that came from another machine'
# Synced files keep the numbers of their owner there.
git config --system --get-all safe.directory | grep -qxF '*' || git config --system --add safe.directory '*'
probe=$(mktemp -d /tmp/phase3.XXXXXX)
git -c init.defaultBranch=main init -q "$probe"
chown -R 12345 "$probe"
git -C "$probe" status >/dev/null || die "git does not accept another owner's files"
rm -rf "$probe"

step 7 'make bash the login shell'
bash=/usr/local/bin/bash
"$bash" -c 'true 2>&1' || die "$bash does not work"
ensure_line /etc/shells "$bash"
[ "$(awk -F: '$1 == "root" { print $7 }' /etc/passwd)" = "$bash" ] || pw usermod root -s "$bash"
[ "$(awk -F: '$1 == "root" { print $7 }' /etc/passwd)" = "$bash" ] || die "root's shell is not $bash"
# What a command over ssh has to work with: that shell, and the PATH of login.conf.
path=$(sed -n 's/^[[:space:]]*:path=\([^:]*\):.*/\1/p' /etc/login.conf | sed -n 1p | sed 's|~|/root|g' | tr ' ' ':')
for tool in go gmake git rsync doas; do
    env -i HOME=/root PATH="$path" "$bash" -c "command -v $tool" >/dev/null || die "a command over ssh would not find $tool: PATH=$path"
done

step 8 'set up the services'
# Phase 1 did so too; after an installation by hand they may be missing.
enable_service sshd
enable_service dntpd
ensure_line /etc/sysctl.conf debug.debugger_on_panic=0
sysctl debug.debugger_on_panic=0 || echo 'this kernel has no debug.debugger_on_panic'
if ! awk '$1 !~ /^#/ && $2 == "/proc" { found = 1 } END { exit !found }' /etc/fstab; then
    ensure_line /etc/fstab 'proc	/proc	procfs	rw	0	0'
fi
if ! mount | grep -q ' on /proc '; then
    mkdir -p /proc
    mount /proc
fi
mount | grep -q ' on /proc ' || die '/proc is not mounted'

step 9 'let the key in, and nothing else'
sshd_config=/etc/ssh/sshd_config
before=$(cat "$sshd_config" /etc/ssh/ssh_host_ed25519_key 2>/dev/null | md5)
install_keys ''
ssh-keygen -A # makes the missing ones, as rc.d/sshd would at the next boot
# The first value of a keyword wins in sshd_config, up to the first Match.
{
    echo 'HostKey /etc/ssh/ssh_host_ed25519_key'
    echo 'PasswordAuthentication no'
    echo 'PermitRootLogin prohibit-password'
    awk 'tolower($1) == "match" { match_seen = 1 }
         match_seen || tolower($1) !~ /^(hostkey|passwordauthentication|permitrootlogin)$/' "$sshd_config"
} >"$sshd_config.new"
chmod 0644 "$sshd_config.new"
/usr/sbin/sshd -t -f "$sshd_config.new" || die 'sshd refuses its configuration'
if cmp -s "$sshd_config.new" "$sshd_config"; then
    rm "$sshd_config.new"
else
    mv "$sshd_config.new" "$sshd_config"
fi
in_force=$(/usr/sbin/sshd -T)
printf '%s\n' "$in_force" | grep -qx 'passwordauthentication no' || die 'sshd would take passwords'
printf '%s\n' "$in_force" | grep -Eqx 'permitrootlogin (prohibit|without)-password' || die 'sshd would not let root in by key only'
[ "$(printf '%s\n' "$in_force" | grep '^hostkey ')" = 'hostkey /etc/ssh/ssh_host_ed25519_key' ] || die 'sshd would offer another host key'
if [ "${PFI_POWEROFF:-yes}" = no ]; then
    pid=$(cat /var/run/sshd.pid 2>/dev/null || true)
    if [ -z "$pid" ] || ! kill -0 "$pid"; then
        service sshd start
    elif [ "$(cat "$sshd_config" /etc/ssh/ssh_host_ed25519_key | md5)" != "$before" ]; then
        kill -HUP "$pid" # sessions go on
    fi
    waited=0
    until nc -z -w 5 127.0.0.1 22; do
        [ "$waited" -lt 30 ] || die 'sshd does not answer on port 22'
        sleep 1
        waited=$((waited + 1))
    done
fi

step 10 "set root's password"
set_root_password ''

step 11 'stop looking for phase discs'
rm -f /etc/pfi.conf /etc/rc.d/pfi
complete=yes
