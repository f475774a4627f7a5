#!/bin/sh
# Phase 1 of 3: puts DragonFlyBSD on the blank disk da0. Runs on the live CD, called by rc.d/pfi as /mnt/phase1.sh with the
# phase disc on /mnt; needs no network.
#
# In this order: the phase disc's files are copied away, because /mnt becomes the new disk's mount point; the disk gets one
# slice with a UFS /boot (the boot blocks read it), swap, and a HAMMER2 root; the system comes from a second, untouched copy
# of the installer's CD, because the running one has memory file systems over /etc, /var and /root; then the settings, the
# keys and the accounts; last rc.d/pfi, so that the next boots look for the discs of phases 2 and 3, however often.
# Phases through PFI, and the second copy of the CD, are ideas of golang/build (env/dragonfly-amd64).
#
# A second run starts over with an empty disk, so nothing of a failed one is in its way.
set -eu
umask 022
PATH=/sbin:/bin:/usr/sbin:/usr/bin
export PATH
phase=1

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

conf() { # KEY: its value in vm.conf
    value=$(sed -n "s/^$1=//p" "$data/vm.conf")
    [ -n "$value" ] || die "vm.conf has no $1"
    printf '%s\n' "$value"
}

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

# The kernel makes and removes the nodes of slices and partitions a moment after a label has been written.
wait_for() { # WHAT COMMAND...
    what=$1
    shift
    waited=0
    until "$@"; do
        [ "$waited" -lt 30 ] || die "waited 30 s in vain for $what"
        sleep 1
        waited=$((waited + 1))
    done
}

step 1 'look at the machine'
if mount | grep -q '^[^ ]*da0s'; then
    die 'da0 is in use: this script erases it, and only runs on the live CD'
fi
wait_for /dev/da0 [ -e /dev/da0 ]
ifconfig vtnet0 >/dev/null || die 'no network interface vtnet0: the VM needs a virtio network card'

step 2 'keep the files of the phase disc in memory'
data=/root/pfi
mkdir -p "$data"
chmod 0700 "$data"
for file in vm.conf authorized_keys hostkey hostkey.pub; do
    [ -s "/mnt/$file" ] || die "the phase disc has no $file"
    cp "/mnt/$file" "$data/$file"
done
hostname=$(conf VM_HOSTNAME)
address=$(conf VM_ADDRESS)
netmask=$(conf VM_NETMASK)
gateway=$(conf VM_GATEWAY)
dns=$(conf VM_DNS)

step 3 'partition the disk'
fdisk -IB /dev/da0
wait_for /dev/da0s1 [ -e /dev/da0s1 ]
# On a disk that was used before, the nodes of its old partitions are still there after fdisk. This label has no
# partitions, so it takes them away.
disklabel -r -w -B /dev/da0s1 auto
for partition in a b d; do
    wait_for "the old /dev/da0s1$partition to disappear" [ ! -e "/dev/da0s1$partition" ]
done
disklabel da0s1 >/tmp/label
printf '%s\n' 'a: 1G 0 4.2BSD' 'b: 2G * swap' 'd: * * HAMMER2' >>/tmp/label
disklabel -R -r da0s1 /tmp/label
for partition in a b d; do
    wait_for "/dev/da0s1$partition" [ -e "/dev/da0s1$partition" ]
done

step 4 'make the file systems'
newfs /dev/da0s1a
newfs_hammer2 -L ROOT /dev/da0s1d
mount -t hammer2 /dev/da0s1d /mnt
mkdir /mnt/boot /mnt/mnt
mount -t ufs /dev/da0s1a /mnt/boot

step 5 'find a copy of the installer CD'
# cd2 is the third drive; the others are tried in case the numbering differs. cdN and acdN are two nodes of one drive, and
# each can be mounted once. So the running CD can be mounted again through its other node, without the memory file systems.
iso=
for cd in cd2 acd2 cd3 acd3 cd1 acd1 cd0 acd0; do
    [ -e "/dev/$cd" ] || continue
    mount_cd9660 "/dev/$cd" /mnt/mnt || continue
    if [ -x /mnt/mnt/sbin/init ] && [ -d /mnt/mnt/boot ] && [ -f /mnt/mnt/etc/rc.conf ]; then
        iso=$cd
        break
    fi
    umount /mnt/mnt
done
[ -n "$iso" ] || die 'no drive holds an installer CD that can be mounted'

step 6 "copy the system from $iso"
# cpdup does not cross into another file system on either side, hence /boot by itself. -i0 and -s0: it asks nothing.
cpdup -i0 -s0 /mnt/mnt/boot /mnt/boot
cpdup -i0 -s0 /mnt/mnt /mnt
umount /mnt/mnt
for file in boot/loader boot/kernel sbin/init etc/rc etc/rc.d/pfi etc/ssh/sshd_config etc/master.passwd; do
    [ -e "/mnt/$file" ] || die "/$file is missing on the new disk"
done

step 7 'remove what belongs to the CD only'
# -r: on the CD, autorun is a directory and autorun.inf is a file.
rm -rf /mnt/README* /mnt/autorun* /mnt/index.html /mnt/dflybsd.ico /mnt/boot.catalog /mnt/rr_moved /mnt/etc.hdd
printf 'Welcome to DragonFly!\n\n' >/mnt/etc/issue # the CD's tells people to log in as installer

step 8 'set up booting from the disk'
# The CD's loader.conf looks for the root file system on a CD. autoboot_delay: 0 would mean the default of 10 s.
cat >/mnt/boot/loader.conf <<'CONF'
vfs.root.mountfrom=hammer2:da0s1d
console=comconsole
autoboot_delay=1
CONF
# Tests look at processes through /proc; swap lets their tmpfs mounts be larger than the memory.
cat >/mnt/etc/fstab <<'CONF'
da0s1a	/boot	ufs	rw	1	1
da0s1b	none	swap	sw	0	0
da0s1d	/	hammer2	rw	1	1
proc	/proc	procfs	rw	0	0
CONF

step 9 'set up the network and the services'
# A fixed address: the user-mode network of QEMU always hands out this one, and a lease costs time at every boot.
cat >/mnt/etc/rc.conf <<CONF
hostname="$hostname"
ifconfig_vtnet0="inet $address netmask $netmask"
defaultrouter="$gateway"
sshd_enable="YES"
dntpd_enable="YES"
CONF
rm -f /mnt/etc/resolv.conf
printf 'nameserver %s\n' "$dns" >/mnt/etc/resolv.conf
# A panic reboots after a while instead of waiting for somebody at the debugger's prompt.
ensure_line /mnt/etc/sysctl.conf debug.debugger_on_panic=0

step 10 'let the key in, and nothing else'
install_keys /mnt
shipped=$(awk 'tolower($1) == "passwordauthentication" { print tolower($2); exit }' /mnt/etc/ssh/sshd_config)
[ "$shipped" = no ] || die "sshd would take passwords: its configuration says PasswordAuthentication ${shipped:-nothing}"
# On the CD root's password is empty, and so is that of "installer", a second root.
if grep -q '^installer:' /mnt/etc/master.passwd; then
    pw -V /mnt/etc userdel installer
fi
set_root_password /mnt
bad=$(awk -F: '!/^#/ && NF > 6 && ($2 == "" || $1 == "installer") { print $1 }' /mnt/etc/master.passwd)
[ -z "$bad" ] || die "accounts that need no password are left:" "$bad"

step 11 'have the next boots look for phases 2 and 3'
# rc.d/pfi looks for a disc only if there is no /etc/pfi.conf, and always leaves one. The line goes before the first command,
# below the comments that rcorder reads.
awk '!found && !/^[[:space:]]*(#|$)/ { print "rm -f /etc/pfi.conf"; found = 1 } { print }' /mnt/etc/rc.d/pfi >/tmp/pfi
cat /tmp/pfi >/mnt/etc/rc.d/pfi # keeps owner and mode
rm -f /mnt/etc/pfi.conf
grep -qx 'rm -f /etc/pfi.conf' /mnt/etc/rc.d/pfi || die '/etc/rc.d/pfi could not be changed'
sh -n /mnt/etc/rc.d/pfi || die '/etc/rc.d/pfi is no script any more'
[ -x /mnt/etc/rc.d/pfi ] || die '/etc/rc.d/pfi is not executable'

step 12 'write everything to the disk'
sync
umount /mnt/boot
umount /mnt
if mount | grep -q '^[^ ]*da0s'; then
    die 'the new disk is still mounted'
fi
complete=yes
