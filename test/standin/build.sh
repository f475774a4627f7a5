#!/bin/sh
# build.sh OUTDIR: builds the stand-in guest and prints the directory that holds it, OUTDIR/<hash>.
#
# The stand-in is a test double of DragonFlyBSD 6.4.2: a bootable ISO that keeps DragonFly's contract on a Linux
# kernel, so that phases/*.sh run in it unchanged, under a real QEMU, and install to a disk that then boots by itself.
#   loader         the initramfs: plays the boot loader on the serial line, then the kernel's first words
#   guest/libexec  the programs: a table of flags, one wrapper that refuses what is not in it, sub/<program>
#   guest/dns.go   the network's name server, which knows the mirror
#   guest/etc      /etc.hdd (what an installed system gets); guest/cd adds what only the CD's /etc has
#   strictness.sh  run inside the guest, proves that it refuses what DragonFly refuses
# A web server on OUTDIR/<hash> is a mirror: iso-images/dfly-x86_64-6.4.2_REL.iso(.bz2), iso-images/md5.txt and the
# package repository dports/dragonfly:6.4:x86:64/LATEST.
#
# In QEMU (-machine pc, virtio-scsi disk, IDE CDs, virtio-net) the guest reads
#   -fw_cfg name=opt/standin/mirror,string=http://10.0.2.2:PORT    stands for mirror-master.dragonflybsd.org
#   -fw_cfg name=opt/standin/fault,string=NAME[@MOMENT]            goes wrong on request:
#       panic mountroot fsck @boot; panic hang nonet norepo flood @phase1 @phase2 @phase3 @runtime;
#       halt (power-off only halts), reboot-loop (it reboots instead), mute (the CD's loader knows no serial line)
# Root can ask for most of them too: /usr/libexec/standin/fault NAME.
#
# Made from Debian or Ubuntu packages that apt downloads and verifies, without root. With the same inputs it answers
# at once. build.sh --packages prints the packages that the building itself needs.
set -eu

NEEDS='grub-pc-bin grub-common xorriso cpio zstd bzip2'
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
for p in grub-mkimage:grub-common xorriso:xorriso cpio:cpio zstd:zstd bzip2:bzip2 apt-get:apt dpkg-deb:dpkg; do
    command -v "${p%%:*}" >/dev/null || missing="$missing ${p#*:}"
done
[ -r /usr/lib/grub/i386-pc/boot.img ] || missing="$missing grub-pc-bin"
[ -z "$missing" ] || fail "not installed:$missing (sudo apt-get install$missing)"

# --- the inputs -------------------------------------------------------------------------------------------
mkdir -p "$1/debs/partial"
out=$(CDPATH='' cd -- "$1" && pwd)
own=$(cd "$here" && find build.sh loader guest -type f | LC_ALL=C sort | xargs sha256sum)
# Asking apt takes seconds; while its lists and these files are the same, so is the answer.
asked=$out/debs/asked.$({ echo "$own"; ls -l --time-style=full-iso /var/lib/apt/lists /etc/os-release; } 2>&1 | sha256sum | cut -c1-16)
if [ -f "$asked" ] && [ -d "$out/$(cat "$asked")" ]; then echo "$out/$(cat "$asked")"; exit 0; fi
id=$(. /etc/os-release; echo "${ID-} ${ID_LIKE-}")
go=$(apt-cache search --names-only '^golang-1\.[0-9]*-go$' 2>/dev/null | sed 's/ .*//' | sort -t. -k2n | head -n 1)
case $id in
*ubuntu*)
    # qemu_fw_cfg, which tells the guest of its mirror, is among the extra modules there.
    kernel="linux-image-virtual $(apt-cache depends linux-image-virtual 2>/dev/null | sed -n 's/.*Depends: linux-image-/linux-modules-extra-/p')"
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
plan=$(apt -s 2>/dev/null | sed -n 's/^Inst //p' | sort) || fail "apt cannot plan: sudo apt-get update"
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
while read -r name version arch; do
    f=$out/debs/${name}_$(echo "$version" | sed 's/:/%3a/g')_$arch.deb
    [ -r "$f" ] || fail "$f is missing"
    case $name in linux-modules-extra-*) only='--wildcards */qemu_fw_cfg.ko*' ;; *) only= ;; esac
    # shellcheck disable=SC2086
    dpkg-deb --fsys-tarfile "$f" | tar -x --keep-directory-symlink --no-same-owner -C "$pool" --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./dev/*' $only
done <"$work/plan"
libs=$pool/usr/lib/x86_64-linux-gnu

# needed BINARY...: the shared libraries it loads, by the guest's own dynamic linker
needed() {
    for b; do
        [ -f "$b" ] && [ "$(head -c 4 "$b" | tail -c 3)" = ELF ] || continue
        "$pool/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libs" --list "$b" 2>/dev/null |
            sed -n 's/.* => \([^ ]*\) (.*/\1/p'
    done | sort -u
}
# with_libs ROOT BINARY...: copies those that the base system lacks
with_libs() {
    to=$1
    shift
    needed "$@" | while read -r l; do
        n=${l##*/}
        [ -e "$root/usr/lib/x86_64-linux-gnu/$n" ] && continue
        mkdir -p "$to/usr/lib/x86_64-linux-gnu"
        cp -L "$l" "$to/usr/lib/x86_64-linux-gnu/$n"
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
for d in bin sbin usr/bin usr/sbin usr/games usr/libexec usr/lib/x86_64-linux-gnu usr/obj usr/local/etc/pkg/repos usr/local/bin usr/local/sbin lib64 \
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
grep -q /etc/pwd.db "$root/usr/lib/x86_64-linux-gnu/libc.so.6" || fail "libc.so.6 keeps no /etc/passwd to rename"

put "$root" bin/sh usr/bin/dash
tcsh=$(cd "$pool" && ls usr/bin/tcsh usr/bin/bsd-csh 2>/dev/null | head -n 1)
put "$root" bin/csh "$tcsh"
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
done
put "$root" "$S/real/nc" usr/bin/nc.openbsd

# The wrapper and its links.
cp -R "$here/guest/libexec/." "$root$S/"
chmod 755 "$root$S/init" "$root$S/fault" "$root$S/udhcpc"
{
    cat "$root$S/strict.head"
    echo "case \$prog in"
    sed -e '/^#/d' "$root$S/table" | while read -r path spec how; do
        echo "'${path##*/}') spec='$spec' how=$how ;;"
    done
    # shellcheck disable=SC2016
    echo '*) die "not in the table" ;;' 'esac'
    cat "$root$S/strict.tail"
} >"$root$S/strict"
rm "$root$S/strict.head" "$root$S/strict.tail"
chmod 755 "$root$S/strict"
sed -e '/^#/d' "$root$S/table" | while read -r path _; do
    up=$(dirname "$path" | sed 's,/[^/]*,../,g')
    ln -s "${up}usr/libexec/standin/strict" "$root$path"
    ln -sf ../strict "$root$S/strict.d/${path##*/}"
done
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
# What lies about on the CD and has no business on a disk.
for f in README README.USB autorun.bat autorun.inf index.html dflybsd.ico; do echo "$f of the release media" >"$root/$f"; done

# --- the boot loader, the kernel, the initramfs -----------------------------------------------------------
say "the kernel and the loader"
vmlinuz=$(ls "$pool"/boot/vmlinuz-* | head -n 1)
kver=${vmlinuz##*/vmlinuz-}
mods=$pool/usr/lib/modules/$kver
find "$mods" -name '*.ko.zst' -exec zstd -dq --rm {} + 2>/dev/null || true
find "$mods" -name '*.ko.xz' -exec xz -d {} + 2>/dev/null || true
"$pool/usr/bin/busybox" depmod -b "$pool" "$kver" 2>/dev/null || true
ird=$work/initramfs
mkdir -p "$ird/bin" "$ird/lib/modules/$kver"
cp "$pool/usr/bin/busybox" "$ird/bin/"
cp "$here/loader" "$ird/init"
chmod 755 "$ird/init"
want='virtio_pci ata_piix virtio_scsi sd_mod sr_mod isofs virtio_net qemu_fw_cfg button evdev vfat nls_cp437 nls_ascii nls_iso8859-1 ata_generic'
for m in $want; do
    l=$(grep "/$(echo "$m" | tr _ '?' | sed 's/?/[-_]/g')\.ko:" "$mods/modules.dep" || true)
    [ -n "$l" ] || continue
    echo "$m" >>"$ird/modules"
    for f in ${l%%:*} ${l#*:}; do
        mkdir -p "$ird/lib/modules/$kver/$(dirname "$f")"
        cp "$mods/$f" "$ird/lib/modules/$kver/$f"
    done
done
"$pool/usr/bin/busybox" depmod -b "$ird" "$kver" 2>/dev/null || true
mkdir -p "$root/boot/kernel"
(cd "$ird" && find . | sort | cpio -o -H newc -R 0:0 --quiet | gzip -9n) >"$root/boot/loader"
cp "$vmlinuz" "$root/boot/kernel/kernel"
chmod 755 "$root/boot/kernel/kernel" "$root/boot/loader"
cp "$here/guest/cd/boot/loader.conf" "$root/boot/loader.conf"

# The disk's boot code: the mbr jumps to sector 2112, 32 KB into the slice, where disklabel -B puts boot2.
args='quiet loglevel=1 console=tty0 panic=0 net.ifnames=0 mitigations=off nowatchdog'
printf 'linux (hd0,msdos2)/kernel/kernel %s standin.boot=disk\ninitrd (hd0,msdos2)/loader\nboot\n' "$args" >"$work/boot/disk.cfg"
grub-mkimage -O i386-pc -p '(hd0,msdos2)/boot' -c "$work/boot/disk.cfg" -o "$work/boot/core.img" biosdisk part_msdos ext2 linux
le64() { printf "$(printf '\\%03o\\%03o\\0\\0\\0\\0\\0\\0' $(($1 & 255)) $(($1 >> 8)))"; }
head -c 440 /usr/lib/grub/i386-pc/boot.img >"$root/boot/mbr"
le64 2112 | dd of="$root/boot/mbr" bs=1 seek=92 conv=notrunc 2>/dev/null
cp "$work/boot/core.img" "$root/boot/boot2_64"
le64 2113 | dd of="$root/boot/boot2_64" bs=1 seek=500 conv=notrunc 2>/dev/null
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
    f=All/$1-$v.pkg
    (cd "$work/pkg/$1" && find . ! -type d | sed 's,^\./,,' | sort | tar -c --owner=0 --group=0 --numeric-owner -T -) | zstd -q -6 -T0 -o "$repo/$f"
    echo "$1|$v|$f|$(wc -c <"$repo/$f")|$(sha256sum "$repo/$f" | cut -d' ' -f1)" >>"$repo/packagesite.txt"
    rm -rf "$work/pkg/$1"
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
printf '#!/bin/sh\nexport GIT_EXEC_PATH="${GIT_EXEC_PATH-/usr/local/libexec/git-core}" GIT_TEMPLATE_DIR="${GIT_TEMPLATE_DIR-/usr/local/share/git-core/templates}"\nexec /usr/local/libexec/git-core/git "$@"\n' >"$P/git/usr/local/bin/git"
: >"$P/git/usr/local/share/git-core/templates/description"
chmod 755 "$P/git/usr/local/bin/git"
for p in upload-pack receive-pack upload-archive; do ln -s git "$P/git/usr/local/bin/git-$p"; sed -i 's/^exec .*/case ${0##*\/} in git-*) set -- "${0##*\/git-}" "$@" ;; esac\n&/' "$P/git/usr/local/bin/git"; done
pack git git
goroot=$(ls -d "$pool"/usr/lib/go-1.* | head -n 1)
goshare=$pool/usr/share/${goroot##*/}
G=$P/go/usr/local/go
mkdir -p "$G/pkg/tool" "$P/go/usr/local/bin"
cp -R "$goroot/bin" "$G/bin"
cp "$goroot/VERSION" "$G/VERSION"
cp -R "$goshare/src" "$G/src"
[ ! -d "$goshare/pkg/include" ] || cp -R "$goshare/pkg/include" "$G/pkg/include"
[ ! -e "$goroot/go.env" ] && [ ! -e "$goshare/go.env" ] || cp -L "$goroot/go.env" "$G/go.env" 2>/dev/null || cp -L "$goshare/go.env" "$G/go.env"
find "$G/src" \( -name '*_test.go' -o -name testdata -o -name '*.syso' \) -prune -exec rm -rf {} +
rm -rf "$G/src/cmd"
t=$(ls -d "$goroot"/pkg/tool/*)
mkdir -p "$G/pkg/tool/linux_amd64"
for p in asm buildid compile link test2json vet cover; do [ ! -e "$t/$p" ] || cp "$t/$p" "$G/pkg/tool/linux_amd64/"; done
say "go's standard library"
# Without cgo (the guest has no C compiler), and compiled in advance where this version of Go keeps it.
build_go() { (cd / && env -i PATH=/usr/bin:/bin HOME="$work" GOROOT="$G" GOCACHE="$work/gocache" CGO_ENABLED=0 GO111MODULE=off GOTOOLCHAIN=local "$G/bin/go" "$@" >&2); }
build_go install std
build_go build -trimpath -ldflags='-s -w' -o "$root$S/dns" "$here/guest/dns.go"
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
echo 'pkg 0 1.20.9 all' >>"$work/plan"
sed -i 's/^pkg 0 1.20.9 all$/pkg 1.20.9 all/' "$work/plan"
pack pkg pkg

# --- the ISO ------------------------------------------------------------------------------------------------
say "the ISO"
iso=$work/out/iso-images/dfly-x86_64-${VERSION}_REL.iso
mkdir -p "$work/out/iso-images"
find "$root" -exec touch -h -d '2025-07-24 00:00:00 UTC' {} +
xorriso -as mkisofs -quiet -R -J -joliet-long -uid 0 -gid 0 -V DragonFly_v6.4.2 -iso-level 3 -b boot/cdboot -c boot.catalog \
    -no-emul-boot -boot-load-size 4 -boot-info-table -o "$iso" "$root" >&2
if command -v lbzip2 >/dev/null; then lbzip2 -k "$iso"; else bzip2 -k "$iso"; fi
(cd "$work/out/iso-images" && md5sum -- *.iso *.iso.bz2 | sed 's/^\([^ ]*\) [ *]\(.*\)/MD5 (\2) = \1/' >md5.txt)
sync "$iso" 2>/dev/null || true
mv -T "$work/out" "$final" 2>/dev/null || [ -d "$final" ] # another build may have been faster
rm -f "$out"/debs/asked.*
echo "$hash" >"$asked"
# Yesterday's builds of other inputs.
find "$out" -maxdepth 1 \( -name '????????????????' -o -name '.????????????????.*' \) -type d -mtime +0 ! -name "$hash" ! -name ".$hash.*" -exec rm -rf {} + 2>/dev/null || true
echo "$final"
