#!/bin/sh
# Phase 2 of 3: brings the packages up to date and installs the tools. Runs on the new disk, called by rc.d/pfi as
# /mnt/phase2.sh; by hand or over ssh with PFI_POWEROFF=no. A second run does again what the first did not finish.
#
# In this order: the repository's configuration is restored first, because without one there is no host to reach; that host is
# reached before pkg is called, because pkg's own errors do not tell a dead network from a dead mirror; pkg upgrades itself
# before the rest, because the ISO's pkg is too old for today's packages - and may throw the repository's configuration away
# while it does so, so it is restored before every step.
set -eu
umask 022
HOME=/root
PATH=/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin # rc's PATH lacks /usr/local
ASSUME_ALWAYS_YES=YES                                             # pkg has nobody to ask
export HOME PATH ASSUME_ALWAYS_YES
phase=2
repos=/usr/local/etc/pkg/repos

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

# Every enabled repository's URL, one a line. In what pkg's configuration allows, one line may hold several settings.
active_urls() {
    for file in "$repos"/*.conf; do
        [ -f "$file" ] || continue
        awk '
            {
                gsub(/[$][{][A-Za-z_]*[}]/, "X") # ${ABI} is no block
                gsub(/^[[:space:]]*#.*|[[:space:]]#.*/, "")
                gsub(/[{},;]/, "\n&\n")
                n = split($0, part, "\n")
                for (i = 1; i <= n; i++) {
                    if (part[i] == "{") { url = ""; enabled = 1; continue }
                    if (part[i] == "}") { if (url != "" && enabled) print url; url = ""; continue }
                    if (!match(part[i], /[:=]/)) continue
                    key = tolower(substr(part[i], 1, RSTART - 1))
                    value = substr(part[i], RSTART + 1)
                    gsub(/["[:space:]]/, "", key)
                    gsub(/["[:space:]]/, "", value)
                    if (key == "url") url = value
                    if (key == "enabled") enabled = tolower(value) !~ /^(no|false|off|0)$/
                }
            }' "$file"
    done
}

restore_repository() {
    [ -z "$(active_urls)" ] || return 0
    [ -f "$repos/df-latest.conf.sample" ] || die "pkg has no repository, and $repos has no df-latest.conf.sample to make one of"
    echo 'pkg has no repository: taking df-latest.conf.sample'
    cp "$repos/df-latest.conf.sample" "$repos/df-latest.conf"
    [ -n "$(active_urls)" ] || die "df-latest.conf.sample holds no enabled repository"
}

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

package() { # PKG-ARGUMENT...
    restore_repository
    pkg "$@"
}

resolves() { # HOST
    drill "$1" A 2>/dev/null | awk '!/^;/ && $3 == "IN" && $4 == "A" { found = 1 } END { exit !found }'
}

unreachable() { # WHAT-HAPPENED: with what one wants to see then
    ifconfig -a || true
    cat /etc/resolv.conf || true
    die "$*"
}

reach() { # URL
    url=${1#pkg+}
    case $url in
        http://*) port=80 ;;
        https://*) port=443 ;;
        *) die "cannot tell the host of the package repository $1" ;;
    esac
    host=${url#*://}
    host=${host%%/*}
    case $host in
        *:*)
            port=${host##*:}
            host=${host%:*}
            ;;
    esac
    printf 'package repository: %s, port %s\n' "$host" "$port"
    case $host in
        *[!0-9.]*) retry "look up $host" resolves "$host" || unreachable "the name $host cannot be resolved: no network, or no DNS" ;;
    esac
    retry "connect to $host port $port" nc -z -w 10 "$host" "$port" || unreachable "$host does not answer on port $port"
}

step 1 'find the package repository'
command -v pkg >/dev/null || die 'there is no pkg'
restore_repository
# Installed by hand, the system lacks the link to the certificates that the CD's own /etc has.
if [ ! -e /etc/ssl/cert.pem ] && [ -f /usr/local/share/certs/ca-root-nss.crt ]; then
    mkdir -p /etc/ssl
    rm -f /etc/ssl/cert.pem
    ln -s ../../usr/local/share/certs/ca-root-nss.crt /etc/ssl/cert.pem
fi

step 2 'reach the package repository'
for url in $(active_urls); do
    reach "$url"
done

step 3 'update the list of packages'
retry 'pkg update' package update

step 4 'upgrade pkg itself'
package upgrade -y pkg || echo 'pkg did not upgrade itself; the next step tries again'

step 5 'upgrade all packages'
retry 'pkg update' package update
retry 'pkg upgrade' package upgrade -fy

step 6 'install the tools'
retry 'pkg install' package install -y go bash git rsync curl wget doas gmake
restore_repository
rm -rf /var/cache/pkg/* # a few hundred megabytes that every snapshot would carry

step 7 'check the tools'
for tool in bash git rsync curl wget gmake; do
    "/usr/local/bin/$tool" --version >/dev/null || die "/usr/local/bin/$tool does not work"
done
/usr/local/bin/go version || die '/usr/local/bin/go does not work'
[ -x /usr/local/bin/doas ] || die '/usr/local/bin/doas is missing'
[ -u /usr/local/bin/doas ] || die '/usr/local/bin/doas is not setuid'
complete=yes
