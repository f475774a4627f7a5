#!/bin/sh
# build.sh OUTDIR: builds the stand-in guest and prints the directory that holds it, OUTDIR/<hash>.
#
# The stand-in is a test double of DragonFlyBSD 6.4.2: a bootable ISO that keeps DragonFly's contract on a Linux
# kernel, so that phases/*.sh run in it unchanged, under a real QEMU, and install to a disk that then boots by itself.
#   loader         the initramfs: plays the boot loader on the serial line, then the kernel's first words
#   guest/libexec  the programs: a table of flags, one wrapper that refuses what is not in it, sub/<program>
#   guest/dns.go   the network's name server, which knows the mirror; guest/procfs.go: /proc as DragonFly's
#   guest/etc      /etc.hdd (what an installed system gets); guest/cd adds what only the CD's /etc has
#   strictness.sh  run inside the guest, proves that it refuses what DragonFly refuses
# A web server on OUTDIR/<hash> is a mirror: iso-images/dfly-x86_64-6.4.2_REL.iso(.bz2), iso-images/md5.txt and the
# package repository dports/dragonfly:6.4:x86:64/LATEST.
#
# In QEMU (-machine pc, virtio-scsi disk, IDE CDs, virtio-net) the guest reads
#   -fw_cfg name=opt/standin/mirror,string=http://10.0.2.2:PORT    stands for mirror-master.dragonflybsd.org
#   -fw_cfg name=opt/standin/fault,string=NAME[@MOMENT]            goes wrong on request:
#       panic mountroot fsck @boot; panic hang nonet norepo flood @phase1 @phase2 @phase3 @runtime;
#       halt (power-off only halts), reboot-loop (it reboots instead), mute (the CD's loader knows no serial line);
#       nokernel (the loader finds no kernel and stays at its prompt), nomodule (it finds no ehci.ko and xhci.ko, says
#       so, and boots on)
# Root can ask for most of them too: /usr/libexec/standin/fault NAME. `sysctl debug.panic=1` panics as well.
#
# Where it is kinder than DragonFly, as far as is known:
#   - umount -f always succeeds; a devfs with an open device file stays busy there
#   - /dev/random and /dev/urandom take writes; there only /dev/random does, after sysctl kern.seedenable=1
#   - /proc/self, /proc/PID/stat and a few more can be opened by name, and a procfs mounted elsewhere than /proc is Linux's
#   - what was written last survives a power cut, and /boot never keeps boot2 from booting
#   - a shutdown takes about 3 s, there 15 to 20; the kernel never doubles a character of its messages
#
# Made from Debian or Ubuntu packages that apt downloads and verifies, without root. If nothing has changed, it prints the
# existing directory at once. build.sh --packages prints the packages that the building itself needs.
#
# Every command here may fail, and then the build must: sh knows no pipefail, so in a pipeline only the last command may be
# one that can fail. What is optional is tested for by name.
set -eu

NEEDS='grub-pc-bin grub-common xorriso cpio zstd bzip2 xz-utils gzip findutils tar mawk'
VERSION=6.4.2
ABI=dragonfly:6.4:x86:64

[ $# -eq 1 ] || { echo "usage: build.sh OUTDIR | --packages" >&2; exit 2; }
if [ "$1" = --packages ]; then echo "$NEEDS"; exit 0; fi
say() { echo "standin: $*" >&2; }
fail() { say "$*"; exit 69; }
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
export PATH LC_ALL=C
umask 022

missing=
for p in grub-mkimage:grub-common xorriso:xorriso cpio:cpio zstd:zstd bzip2:bzip2 xz:xz-utils gzip:gzip find:findutils \
    xargs:findutils tar:tar awk:mawk sed:sed grep:grep apt-get:apt apt-cache:apt dpkg-deb:dpkg; do
    command -v "${p%%:*}" >/dev/null || missing="$missing ${p#*:}"
done
[ -r /usr/lib/grub/i386-pc/boot.img ] || missing="$missing grub-pc-bin"
[ -z "$missing" ] || fail "not installed:$missing (sudo apt-get install$missing)"

# --- the inputs -------------------------------------------------------------------------------------------
mkdir -p "$1/debs/partial"
out=$(CDPATH='' cd -- "$1" && pwd)
own=$(cd "$here" && find build.sh loader guest -type f)
own=$(cd "$here" && printf '%s\n' "$own" | sort | xargs sha256sum)
# Asking apt takes seconds; while its lists and these files are the same, so is the answer. (Without any lists apt says so below.)
asked=$out/debs/asked.$({ echo "$own"; ls -l --time-style=full-iso /var/lib/apt/lists /etc/os-release; } 2>&1 | sha256sum | cut -c1-16)
if [ -f "$asked" ] && [ -d "$out/$(cat "$asked")" ]; then echo "$out/$(cat "$asked")"; exit 0; fi
id=$(. /etc/os-release; echo "${ID-} ${ID_LIKE-}")
go=$(apt-cache search --names-only '^golang-1\.[0-9]*-go$') || fail "apt-cache cannot search: sudo apt-get update"
go=$(printf '%s\n' "$go" | sed 's/ .*//' | sort -t. -k2n | head -n 1)
case $id in
*ubuntu*)
    # qemu_fw_cfg, which tells the guest of its mirror, is among the extra modules there.
    modules=$(apt-cache depends linux-image-virtual) || fail "apt knows no package linux-image-virtual: sudo apt-get update"
    modules=$(printf '%s\n' "$modules" | sed -n 's/.*Depends: linux-image-/linux-modules-extra-/p')
    [ -n "$modules" ] || fail "linux-image-virtual depends on no linux-image-VERSION"
    kernel="linux-image-virtual $modules"
    go=golang-1.22-go
    ;;
*) kernel=linux-image-cloud-amd64 ;;
esac
base="busybox-static dash findutils tcsh openssh-server openssh-client openssh-sftp-server procps e2fsprogs original-awk grep ed ldnsutils bzip2 xz-utils zstd openssl coreutils tar netcat-openbsd ncurses-base"
extra="$go bash git rsync curl wget opendoas make ca-certificates"
[ -n "$go" ] || fail "apt knows no package golang-1.NN-go: sudo apt-get update"

: >"$out/debs/none"
apt() { # the whole closure, as on an empty machine
    # shellcheck disable=SC2086
    apt-get -y -qq --no-install-recommends -o Dir::State::status="$out/debs/none" -o Dir::Cache::archives="$out/debs" \
        -o Debug::NoLocking=true "$@" install $kernel $base $extra
}
debs=$(apt --print-uris 2>&1) || fail "apt cannot find the packages; sudo apt-get update. It says: $(printf '%s' "$debs" | tail -n 1)"
# Lines: 'URI' file size [hash]; what is downloaded already is not listed, so name and version come from -s.
plan=$(apt -s 2>&1) || fail "apt cannot plan; sudo apt-get update. It says: $(printf '%s' "$plan" | tail -n 1)"
plan=$(printf '%s\n' "$plan" | sed -n 's/^Inst //p' | sort)
[ -n "$plan" ] || fail "apt plans to install nothing"
hash=$({ printf '%s\n' "$plan"; echo "$own"; } | sha256sum | cut -c1-16)
final=$out/$hash
if [ -d "$final" ]; then
    echo "$hash" >"$asked"
    echo "$final"
    exit 0
fi

say "downloading packages to $out/debs"
apt --download-only >&2 || fail "the download failed"

work=$out/.$hash.$$
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work/pool" "$work/root" "$work/boot" "$work/pkg"
pool=$work/pool
root=$work/root
S=/usr/libexec/standin
say "unpacking"
for d in bin sbin lib lib64; do mkdir -p "$pool/usr/$d"; ln -s usr/$d "$pool/$d"; done
# The archives of this plan only: the cache may hold older ones.
printf '%s\n' "$plan" | sed 's/^\([^ ]*\) .*(\([^ ]*\) .*\[\([a-z0-9]*\)\]).*/\1 \2 \3/' >"$work/plan"
unpack() { # lines of the plan
    while read -r name version arch; do
        f=$out/debs/${name}_$(echo "$version" | sed 's/:/%3a/g')_$arch.deb
        [ -r "$f" ] || fail "$f is missing"
        case $name in linux-modules-extra-*) only='--wildcards */qemu_fw_cfg.ko*' ;; *) only= ;; esac
        dpkg-deb --fsys-tarfile "$f" >"$work/deb.tar"
        # shellcheck disable=SC2086
        tar -x --keep-directory-symlink --no-same-owner -C "$pool" --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
            --exclude='./usr/share/locale/*' --exclude='./dev/*' -f "$work/deb.tar" $only
    done
    rm -f "$work/deb.tar"
}
# The kernel first: if it lacks a module, that is said soon.
sed -n -e '/^linux-/p' -e '/^busybox-static /p' "$work/plan" >"$work/plan.kernel"
unpack <"$work/plan.kernel"

# --- the kernel and its modules ---------------------------------------------------------------------------
vmlinuz=
for f in "$pool"/boot/vmlinuz-*; do vmlinuz=$f; break; done
[ -f "$vmlinuz" ] || fail "the package $kernel holds no kernel"
kver=${vmlinuz##*/vmlinuz-}
mods=$pool/usr/lib/modules/$kver
find "$mods" -name '*.ko.zst' -exec zstd -dq --rm {} +
find "$mods" -name '*.ko.xz' -exec xz -d {} +
"$pool/usr/bin/busybox" depmod -b "$pool" "$kver"
ird=$work/initramfs
mkdir -p "$ird/bin" "$ird/lib/modules/$kver"
cp "$pool/usr/bin/busybox" "$ird/bin/"
cp "$here/loader" "$ird/init"
chmod 755 "$ird/init"
# Each is a file with what it depends on, or part of the kernel. Without one of them the guest would not find its disks, or have no /proc.
for m in virtio_pci fuse ata_piix virtio_scsi sd_mod sr_mod isofs virtio_net qemu_fw_cfg button evdev vfat nls_cp437 nls_ascii nls_iso8859-1 ata_generic; do
    name=$(echo "$m" | sed 's/[-_]/[-_]/g')
    if l=$(grep "/$name\.ko:" "$mods/modules.dep"); then
        echo "$m" >>"$ird/modules"
        for f in ${l%%:*} ${l#*:}; do
            mkdir -p "$ird/lib/modules/$kver/$(dirname "$f")"
            cp "$mods/$f" "$ird/lib/modules/$kver/$f"
        done
    else
        grep -q "/$name\.ko\$" "$mods/modules.builtin" ||
            fail "the kernel $kver has no module $m: neither a file $m.ko in modules.dep nor a line in modules.builtin"
    fi
done
"$pool/usr/bin/busybox" depmod -b "$ird" "$kver"

# --- the other packages -----------------------------------------------------------------------------------
sed -e '/^linux-/d' -e '/^busybox-static /d' "$work/plan" >"$work/plan.others"
unpack <"$work/plan.others"
libs=$pool/usr/lib/x86_64-linux-gnu

# needed BINARY...: the shared libraries it loads, by the guest's own dynamic linker
needed() {
    for b; do
        [ "$(head -c 4 "$b" | tail -c 3)" = ELF ] || continue
        l=$("$pool/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libs" --list "$b" 2>&1) || fail "$b: $l"
        case $l in *'=> not found'*) fail "$b lacks a library: $l" ;; esac
        printf '%s\n' "$l" | sed -n 's/.* => \(.*\) (0x.*/\1/p' # the path may have blanks
    done
}
# with_libs ROOT BINARY...: copies those that the base system lacks
with_libs() {
    to=$1
    shift
    list=$(needed "$@") || exit
    [ -n "$list" ] || return 0
    mkdir -p "$to/usr/lib/x86_64-linux-gnu"
    printf '%s\n' "$list" | while IFS= read -r l; do
        n=${l##*/}
        [ -e "$root/usr/lib/x86_64-linux-gnu/$n" ] || cp -L "$l" "$to/usr/lib/x86_64-linux-gnu/$n"
    done
}
put() { # ROOT TARGET SOURCE
    mkdir -p "$1/$(dirname "$2")"
    cp -L "$pool/$3" "$1/$2"
    chmod 755 "$1/$2"
    with_libs "$1" "$pool/$3"
}

# --- the system ---------------------------------------------------------------------------------------------
say "the system"
for d in autorun bin sbin usr/bin usr/sbin usr/games usr/libexec usr/lib/x86_64-linux-gnu usr/obj usr/local/etc/pkg/repos usr/local/bin usr/local/sbin lib64 \
    proc dev mnt root tmp home run/sshd var/run var/log var/db/pkg var/cache var/empty var/tmp var/mail rr_moved usr/share/skel usr/local/share/certs; do mkdir -p "$root/$d"; done
ln -s usr/lib "$root/lib"
for d in run dev sys proc real sub strict.d; do mkdir -p "$root$S/$d"; done
chmod 1777 "$root/tmp" "$root/var/tmp"
chmod 700 "$root/root"
cp -L "$pool/usr/lib64/ld-linux-x86-64.so.2" "$root/lib64/"
for l in libc.so.6 libnss_dns.so.2 libresolv.so.2; do cp -L "$libs/$l" "$root/usr/lib/x86_64-linux-gnu/"; done

# Users are looked up in the database that pwd_mkdb makes, as on DragonFly, not in /etc/passwd: the C library and
# busybox get other names of the same length.
users() { sed -i -e 's,/etc/passwd\x00,/etc/pwd.db\x00,g' -e 's,/etc/shadow\x00,/etc/spw.db\x00,g' "$1"; }
users "$root/usr/lib/x86_64-linux-gnu/libc.so.6"
cp "$pool/usr/bin/busybox" "$root$S/busybox"
users "$root$S/busybox"
for f in "$root/usr/lib/x86_64-linux-gnu/libc.so.6" "$root$S/busybox"; do
    grep -q /etc/pwd.db "$f" || fail "${f##*/} keeps no /etc/passwd to rename"
done

put "$root" bin/sh usr/bin/dash
put "$root" bin/csh usr/bin/tcsh
ln "$root/bin/csh" "$root/bin/tcsh"
for p in ssh scp sftp ssh-keygen ssh-keyscan ssh-add ssh-agent; do put "$root" usr/bin/$p usr/bin/$p; done
put "$root" usr/sbin/sshd usr/sbin/sshd
put "$root" usr/libexec/sftp-server usr/lib/openssh/sftp-server
for p in sshd-session sshd-auth; do [ ! -e "$pool/usr/lib/openssh/$p" ] || put "$root" usr/lib/openssh/$p usr/lib/openssh/$p; done
put "$root" usr/bin/openssl usr/bin/openssl
for p in usr/bin/ps usr/bin/pgrep usr/bin/pkill usr/bin/grep usr/bin/ed usr/bin/drill usr/bin/bzip2 usr/bin/bunzip2 usr/bin/xz usr/bin/zstd usr/bin/nice usr/bin/comm usr/bin/stat usr/bin/tar usr/bin/find usr/bin/xargs usr/bin/env usr/sbin/chroot usr/sbin/mke2fs usr/sbin/e2fsck; do
    put "$root" "$S/real/${p##*/}" $p
done
put "$root" "$S/real/awk" usr/bin/original-awk
for t in v/vt100 x/xterm x/xterm-256color s/screen l/linux d/dumb; do
    for d in usr/lib/terminfo usr/share/terminfo etc/terminfo; do
        [ ! -e "$pool/$d/$t" ] || { mkdir -p "$root/usr/share/terminfo/${t%/*}"; cp -L "$pool/$d/$t" "$root/usr/share/terminfo/$t"; break; }
    done
    [ -e "$root/usr/share/terminfo/$t" ] || fail "ncurses-base has no terminfo/$t"
done
put "$root" "$S/real/nc" usr/bin/nc.openbsd

# The wrapper and its links.
cp -R "$here/guest/libexec/." "$root$S/"
chmod 755 "$root$S/init" "$root$S/fault" "$root$S/udhcpc"
{
    cat "$root$S/strict.head"
    echo "case \$prog in"
    while read -r path spec how; do
        [ "$path" = '#' ] || echo "'${path##*/}') spec='$spec' how=$how ;;"
    done <"$root$S/table"
    # shellcheck disable=SC2016
    echo '*) die "not in the table" ;;' 'esac'
    cat "$root$S/strict.tail"
} >"$root$S/strict"
rm "$root$S/strict.head" "$root$S/strict.tail"
chmod 755 "$root$S/strict"
while read -r path _; do
    [ "$path" != '#' ] || continue
    up=$(dirname "$path" | sed 's,/[^/]*,../,g')
    ln -s "${up}usr/libexec/standin/strict" "$root$path"
    ln -sf ../strict "$root$S/strict.d/${path##*/}"
done <"$root$S/table"
ln -s ../usr/libexec/standin/init "$root/sbin/init"

# /etc.hdd for an installed system; the CD's own /etc is that and more.
rm -rf "${root:?}/etc"
cp -R "$here/guest/etc" "$root/etc.hdd"
: >"$root/etc.hdd/fstab"
: >"$root/etc.hdd/rc.conf"
chmod 600 "$root/etc.hdd/master.passwd"
cp -R "$root/etc.hdd" "$root/etc"
cp -R "$here/guest/cd/etc/." "$root/etc/"
echo 'installer::0:0::0:0:DragonFly Installer:/root:/bin/sh' >>"$root/etc/master.passwd"
mkdir -p "$root/etc/ssl"
cat "$pool"/usr/share/ca-certificates/mozilla/*.crt >"$root/usr/local/share/certs/ca-root-nss.crt"
ln -s ../../usr/local/share/certs/ca-root-nss.crt "$root/etc/ssl/cert.pem"
chmod 755 "$root"/etc/rc "$root"/etc/rc.d/* "$root"/etc.hdd/rc "$root"/etc.hdd/rc.d/*
for e in etc etc.hdd; do
    awk -F: -v OFS=: '{ print $1, "x", $3, $4, $8, $9, $10 }' "$root/$e/master.passwd" >"$root/$e/pwd.db"
    awk -F: -v OFS=: '{ print $1, "*", $3, $4, $8, $9, $10 }' "$root/$e/master.passwd" >"$root/$e/passwd"
    awk -F: '{ print $1 ":" $2 ":19000:0:99999:7:::" }' "$root/$e/master.passwd" >"$root/$e/spw.db"
    chmod 600 "$root/$e/spw.db"
done
cp "$here/guest/root/dot.cshrc" "$root/root/.cshrc"
cp "$here/guest/root/dot.profile" "$root/root/.profile"
for f in df-latest.conf df-latest.conf.sample; do cp "$here/guest/df-latest.conf" "$root/usr/local/etc/pkg/repos/$f"; done
mkdir -p "$root/var/db/pkg/pkg" "$root/var/db/pkg/ca_root_nss"
echo 1.14.4 >"$root/var/db/pkg/pkg/version"
echo 3.93 >"$root/var/db/pkg/ca_root_nss/version"
# Files of the CD that do not belong on a disk, named as on DragonFly's CD.
for f in README README.USB autorun.bat autorun.inf autorun.pif index.html dflybsd.ico \
    autorun/dflylogo.png autorun/links.png autorun/started.png autorun/stylesheet.css autorun/welcome.png; do
    echo "$f of the release media" >"$root/$f"
done

# --- the boot loader, the kernel, the initramfs -----------------------------------------------------------
say "the kernel and the loader"
mkdir -p "$root/boot/kernel"
(cd "$ird" && find . >"$work/list" && sort "$work/list" | cpio -o -H newc -R 0:0 --quiet >"$work/initramfs.cpio")
gzip -9n <"$work/initramfs.cpio" >"$root/boot/loader"
cp "$vmlinuz" "$root/boot/kernel/kernel"
# GRUB puts the kernel at the first megabyte and then moves it, byte by byte, with all the room that it will want, to the address in
# the kernel's header: 54 MB, a second and a half of an emulated boot. So the header gets that first address. The kernel unpacks itself
# to its right place from anywhere, if it is relocatable.
if [ "$(od -An -tu1 -j 564 -N 1 "$vmlinuz" | tr -d ' ')" = 1 ]; then
    printf '\0\0\020\0\0\0\0\0' | dd of="$root/boot/kernel/kernel" bs=1 seek=600 conv=notrunc status=none
fi
chmod 755 "$root/boot/kernel/kernel" "$root/boot/loader"
cp "$here/guest/cd/boot/loader.conf" "$root/boot/loader.conf"

# The disk's boot code: the mbr jumps to sector 2112, 32 KB into the slice, where disklabel -B puts boot2.
# The second line spares an emulated kernel 0.7 s of the 6.9 s of a boot: checks of its own, and measuring the clock.
args='quiet loglevel=1 console=tty0 panic=0 net.ifnames=0 mitigations=off nowatchdog'
args="$args nokaslr tsc=reliable no_timer_check cryptomgr.notests lsm= audit=0 init_on_alloc=0"
printf 'linux (hd0,msdos2)/kernel/kernel %s standin.boot=disk\ninitrd (hd0,msdos2)/loader\nboot\n' "$args" >"$work/boot/disk.cfg"
grub-mkimage -O i386-pc -p '(hd0,msdos2)/boot' -c "$work/boot/disk.cfg" -o "$work/boot/core.img" biosdisk part_msdos ext2 linux
le64() { printf "$(printf '\\%03o\\%03o\\0\\0\\0\\0\\0\\0' $(($1 & 255)) $(($1 >> 8)))"; }
head -c 440 /usr/lib/grub/i386-pc/boot.img >"$root/boot/mbr"
le64 2112 | dd of="$root/boot/mbr" bs=1 seek=92 conv=notrunc status=none
cp "$work/boot/core.img" "$root/boot/boot2_64"
le64 2113 | dd of="$root/boot/boot2_64" bs=1 seek=500 conv=notrunc status=none
echo 'boot1: in the mbr' >"$root/boot/boot1_64"
# The CD's.
printf 'linux (cd)/boot/kernel/kernel %s standin.boot=cd\ninitrd (cd)/boot/loader\nboot\n' "$args" >"$work/boot/cd.cfg"
grub-mkimage -O i386-pc-eltorito -p '(cd)/boot' -c "$work/boot/cd.cfg" -o "$root/boot/cdboot" biosdisk iso9660 linux

# --- the packages -------------------------------------------------------------------------------------------
say "the packages"
repo=$work/out/dports/$ABI/LATEST
mkdir -p "$repo/All"
pack() { # NAME DEBIAN-PACKAGE: from $work/pkg/NAME
    v=$(awk -v p="$2" '$1 == p { sub(/.*:/, "", $2); sub(/[-+~].*/, "", $2); print $2 }' "$work/plan")
    [ -n "$v" ] || fail "apt's plan has no package $2"
    f=All/$1-$v.pkg
    (cd "$work/pkg/$1" && find . ! -type d >"$work/list" && sed 's,^\./,,' "$work/list" | sort |
        tar -c --owner=0 --group=0 --numeric-owner -T - -f "$work/pkg.tar")
    zstd -q -6 -T0 "$work/pkg.tar" -o "$repo/$f"
    sum=$(sha256sum "$repo/$f")
    echo "$1|$v|$f|$(wc -c <"$repo/$f")|${sum%% *}" >>"$repo/packagesite.txt"
    rm -rf "$work/pkg/$1" "$work/pkg.tar"
}
P=$work/pkg
for p in bash rsync curl wget; do put "$P/$p" usr/local/bin/$p usr/bin/$p; pack $p $p; done
put "$P/gmake" usr/local/bin/gmake usr/bin/make
pack gmake make
put "$P/doas" usr/local/bin/doas usr/bin/doas
chmod 4755 "$P/doas/usr/local/bin/doas"
mkdir -p "$P/doas/etc/pam.d" "$P/doas/usr/lib/x86_64-linux-gnu/security"
cp "$libs/security/pam_permit.so" "$P/doas/usr/lib/x86_64-linux-gnu/security/"
printf 'auth sufficient pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n' >"$P/doas/etc/pam.d/doas"
ln -s ../usr/local/etc/doas.conf "$P/doas/etc/doas.conf"
pack doas opendoas
mkdir -p "$P/git/usr/local/libexec"
cp -R "$pool/usr/lib/git-core" "$P/git/usr/local/libexec/git-core"
rm -f "$P/git/usr/local/libexec/git-core"/git-shell "$P/git/usr/local/libexec/git-core"/git-daemon "$P/git/usr/local/libexec/git-core"/git-http-backend "$P/git/usr/local/libexec/git-core"/git-imap-send
find "$P/git/usr/local/libexec/git-core" -lname '*/bin/git' -exec ln -sf git {} \;
cp "$pool/usr/bin/git" "$P/git/usr/local/libexec/git-core/git"
with_libs "$P/git" "$pool/usr/bin/git" "$pool/usr/lib/git-core/git-remote-http"
mkdir -p "$P/git/usr/local/bin" "$P/git/usr/local/share/git-core/templates"
: >"$P/git/usr/local/share/git-core/templates/description"
# ssh runs git-upload-pack and its like, which are links to this script.
cat >"$P/git/usr/local/bin/git" <<'END'
#!/bin/sh
export GIT_EXEC_PATH="${GIT_EXEC_PATH-/usr/local/libexec/git-core}"
export GIT_TEMPLATE_DIR="${GIT_TEMPLATE_DIR-/usr/local/share/git-core/templates}"
case ${0##*/} in git-*) set -- "${0##*/git-}" "$@" ;; esac
exec /usr/local/libexec/git-core/git "$@"
END
chmod 755 "$P/git/usr/local/bin/git"
for p in upload-pack receive-pack upload-archive; do ln -s git "$P/git/usr/local/bin/git-$p"; done
pack git git
goroot=
for d in "$pool"/usr/lib/go-1.*; do goroot=$d; break; done
[ -x "$goroot/bin/go" ] || fail "the package $go holds no go"
goshare=$pool/usr/share/${goroot##*/}
G=$P/go/usr/local/go
mkdir -p "$G/pkg/tool" "$P/go/usr/local/bin"
cp -R "$goroot/bin" "$G/bin"
cp "$goroot/VERSION" "$G/VERSION"
cp -R "$goshare/src" "$G/src"
[ ! -d "$goshare/pkg/include" ] || cp -R "$goshare/pkg/include" "$G/pkg/include"
for d in "$goshare" "$goroot"; do # since Go 1.21
    [ ! -e "$d/go.env" ] || cp -L "$d/go.env" "$G/go.env"
done
find "$G/src" \( -name '*_test.go' -o -name testdata -o -name '*.syso' \) -prune -exec rm -rf {} +
rm -rf "$G/src/cmd"
mkdir -p "$G/pkg/tool/linux_amd64"
for p in asm buildid compile link test2json vet cover; do cp "$goroot/pkg/tool/linux_amd64/$p" "$G/pkg/tool/linux_amd64/"; done
say "go's standard library"
# Without cgo (the guest has no C compiler).
# What tests import is compiled in advance where this version of Go keeps it. The rest would take a minute.
imported="bytes context errors fmt os os/exec os/signal path/filepath runtime strconv strings sync syscall testing time unicode/utf8"
build_go() { (cd / && env -i PATH=/usr/bin:/bin HOME="$work" GOROOT="$G" GOCACHE="$work/gocache" CGO_ENABLED=0 GO111MODULE=off GOTOOLCHAIN=local "$G/bin/go" "$@"); }
# shellcheck disable=SC2086
std=$(build_go list -deps testing/internal/testdeps $imported)
# shellcheck disable=SC2086
build_go install $std >&2
# A vet of what tests import, as the first `go test` in the guest would do it, in half a minute. Go finds by contents what it knows already.
mkdir "$work/vetted"
printf 'module vetted\n\ngo 1.18\n' >"$work/vetted/go.mod"
{
    echo 'package vetted'
    for p in $imported; do echo "import _ \"$p\""; done
} >"$work/vetted/vetted_test.go"
for how in 'test -exec=/bin/true' vet; do
    # shellcheck disable=SC2086
    (cd "$work/vetted" && env -i PATH=/usr/bin:/bin HOME="$work" GOROOT="$G" GOCACHE="$P/go/root/.cache/go-build" CGO_ENABLED=0 GOTOOLCHAIN=local \
        "$G/bin/go" $how . >&2)
done
for p in dns procfs; do build_go build -trimpath -ldflags='-s -w' -o "$root$S/$p" "$here/guest/$p.go" >&2; done
cat >"$P/go/usr/local/bin/go" <<'END'
#!/bin/sh
export CGO_ENABLED="${CGO_ENABLED-0}" GOROOT="${GOROOT-/usr/local/go}"
exec /usr/local/go/bin/go "$@"
END
chmod 755 "$P/go/usr/local/bin/go"
ln -s ../go/bin/gofmt "$P/go/usr/local/bin/gofmt"
pack go "$go"
mkdir -p "$P/pkg/usr/local/etc/pkg/repos"
cp "$here/guest/df-latest.conf" "$P/pkg/usr/local/etc/pkg/repos/df-latest.conf.sample"
echo 'pkg 1.20.9 all' >>"$work/plan"
pack pkg pkg

# --- the ISO ------------------------------------------------------------------------------------------------
say "the ISO"
iso=$work/out/iso-images/dfly-x86_64-${VERSION}_REL.iso
mkdir -p "$work/out/iso-images"
find "$root" -exec touch -h -d '2025-07-24 00:00:00 UTC' {} +
xorriso -as mkisofs -quiet -R -J -joliet-long -uid 0 -gid 0 -V DragonFly_v6.4.2 -iso-level 3 -b boot/cdboot -c boot.catalog \
    -no-emul-boot -boot-load-size 4 -boot-info-table -o "$iso" "$root" >&2
if command -v lbzip2 >/dev/null; then lbzip2 -k "$iso"; else bzip2 -k "$iso"; fi
sums=$(cd "$work/out/iso-images" && md5sum -- *.iso *.iso.bz2)
printf '%s\n' "$sums" | sed 's/^\([^ ]*\) [ *]\(.*\)/MD5 (\2) = \1/' >"$work/out/iso-images/md5.txt"
sync "$iso"
if ! problem=$(mv -T "$work/out" "$final" 2>&1) && [ ! -d "$final" ]; then # another build may have been faster
    fail "$problem"
fi
rm -f "$out"/debs/asked.*
echo "$hash" >"$asked"
# Removes builds of other inputs that are older than a day. Another build may be removing them at the same time.
find "$out" -maxdepth 1 \( -name '????????????????' -o -name '.????????????????.*' \) -type d -mtime +0 ! -name "$hash" ! -name ".$hash.*" -exec rm -rf {} + ||
    say "an old build in $out could not be removed"
echo "$final"
