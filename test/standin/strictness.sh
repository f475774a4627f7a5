#!/bin/sh
# Run inside the stand-in (ssh guest sh -s <strictness.sh): proves that its programs take what DragonFly's take and refuse
# what those refuse. A line of the table is KIND NAME COMMAND:
#   ok     the command succeeds
#   known  the flags are taken: it may fail, but not over an option (for what would touch a disk)
#   no     the command fails, and says so of an option or of its usage
#   fails  the command fails
#   is     the command prints the word that follows the last |
#   absent the program is not in the base system
# A name that begins with cd: or disk: is for the live CD alone, which may use da0, or for an installed disk alone. The CD's programs are
# those of the disk, so the kinds no, known and absent run on the disk only.
# Prints `ok NAME` or `FAIL NAME`, last `N passed, N failed`.
PATH=/sbin:/bin:/usr/sbin:/usr/bin
export PATH
passed=0
failed=0
d=$(mktemp -d /tmp/strictness.XXXXXX) || exit 1
cd "$d" || exit 1
export d
if mount | grep -q '^[^ ]* on / (cd9660'; then elsewhere=disk; else elsewhere='cd'; fi
printf 'one\ntwo\nthree\n' >file
printf '#!/bin/sh\necho ran\n' >plain
mkdir -p tree/sub
echo inner >tree/sub/inner
ln -s file link

verdict() { # NAME GOOD
    if [ "$2" = yes ]; then
        passed=$((passed + 1))
        echo "ok $1"
    else
        failed=$((failed + 1))
        echo "FAIL $1"
        sed 's/^/    /' "$d/.out" "$d/.err"
    fi
}
while read -r kind name command; do
    case $kind in '' | '#') continue ;; esac
    case $name in $elsewhere:*) continue ;; esac
    case $elsewhere,$kind in disk,no | disk,known | disk,absent) continue ;; esac
    want=
    if [ "$kind" = is ]; then
        want=${command##*|}
        command=${command%|*}
    fi
    good=no
    : >"$d/.out"
    : >"$d/.err"
    if [ "$kind" = absent ]; then
        command -v "$name" >"$d/.out" 2>&1 || good=yes
        verdict "absent:$name" $good
        continue
    fi
    sh -c "$command" </dev/null >"$d/.out" 2>"$d/.err"
    code=$?
    case $code in 126 | 127) kind=missing ;; esac # no program of that name: it refuses nothing
    case $kind in
    ok) [ $code -eq 0 ] && good=yes ;;
    fails) [ $code -ne 0 ] && good=yes ;;
    no) [ $code -ne 0 ] && grep -qiE 'illegal|usage|unknown|invalid|requires|not supported|unrecognized|bad |expect|extra|GNU|unary|not compiled' "$d/.err" && good=yes ;;
    known) grep -qiE 'illegal|unknown option|unrecognized|invalid option' "$d/.err" || good=yes ;;
    is) [ "$(cat "$d/.out")" = "$want" ] && good=yes ;;
    esac
    verdict "$name: $command" $good
done <<'END'
# the shell
fails sh set -o pipefail
fails sh a=(1 2 3)
is sh PATH=/nonexistent; echo $((1 + 1))|2
fails csh csh -c 'ls 2>&1 >/dev/null'
ok csh csh -c 'ls >& /dev/null'
fails csh csh -c 'A=b true'
is csh csh -c 'ls 2>&1 >/dev/null' 2>&1|Ambiguous output redirect.
is csh csh -c 'X=1 true' 2>&1|X=1: Command not found.
is csh csh -c 'echo $(id)' 2>&1|Illegal variable name.
# files
ok cat cat -n file
no cat cat -A file
no cat cat --number file
ok cp cp -Rp tree copy
no cp cp -u file other
no cp cp --recursive tree other
is cp cp -R tree/ slash && ls slash|sub
ok chmod chmod -R go-w tree
no chmod chmod --reference=file plain
ok chown chown -R 0:0 tree
no chown chown --reference=file plain
ok chgrp chgrp -h wheel link
no chgrp chgrp -c wheel link
ok ln ln -sfn file other-link
no ln ln -r -s file relative
ok ls ls -lAd tree
no ls ls --color tree
no ls ls -v tree
ok mkdir mkdir -p -m 0700 deep/er
no mkdir mkdir --parents deep/est
ok mv touch m1 && mv -f m1 m2
no mv mv -t tree m2
ok rm touch r1 && rm -Rf r1
no rm rm --force file
is rm rm -f tree 2>&1|rm: tree: is a directory
fails rm rm -f tree
no rm rm -z file
ok rmdir mkdir e1 && rmdir e1
no rmdir rmdir --ignore-fail-on-non-empty tree
ok touch touch -t 202501020304 t1
no touch touch -d yesterday t1
no touch touch --date=now t1
ok install install -m 0600 file installed
no install install -t tree file
ok truncate truncate -s 1m big
no truncate truncate -o -s 1 big
is stat stat -f %z file|14
is stat stat -f '%p %Lp' plain|100644 644
is stat stat -f %Y link|file
is stat stat -f %HT tree|Directory
is stat n=$(printf 'new\nline'); touch "$n"; ln -s "$n" new; stat -f '%z %N %Y;' "$n" new | tr '\n' _|0 new_line ;_8 new new_line;_
is stat touch -t 202501020304.05 t2; stat -f '%m %Fm' t2 | sed 's/\..*//'|1735787045 1735787045
no stat stat -c %s file
no stat stat --format=%s file
is readlink readlink link|file
no readlink readlink -e link
ok realpath realpath -q file
no realpath realpath -e file
no realpath realpath --relative-to=. file
ok mktemp mktemp -d /tmp/strictness-t.XXXXXX | xargs rmdir
no mktemp mktemp
no mktemp mktemp -p /tmp x.XXXXXX
ok dd dd if=/dev/zero of=dd1 bs=1m count=1
fails dd dd if=/dev/zero of=dd1 bs=1M count=1
fails dd dd if=/dev/zero of=dd1 bs=1k count=1 status=none
ok df df -k .
no df df --output=size .
no df df -B1 .
ok du du -sk tree
no du du -b tree
no du du --apparent-size tree
ok find find tree -name inner -print0
fails find find -name inner
fails find find tree -printf %p
fails find find tree -regextype posix-extended
fails find find tree -exec stat -c %n {} +
ok cpdup cpdup -i0 -s0 tree cpdup1
no cpdup cpdup -a tree cpdup1
no cpdup cpdup --help
# text
ok sed sed -i '' -e s/one/1/ -e s/two/2/ file
is sed sed -n 1p file|1
fails sed sed -i s/1/one/ file
no sed sed --in-place s/1/one/ file
no sed sed 's/\s//' file
no sed sed '1a text' file
no sed sed -n -e p -e 's/\t/ /' file
no sed printf 's/a\\+/b/\n' >s1 && sed -f s1 file
no sed sed -n '0,/two/p' file
no sed sed -n '1~2p' file
no sed sed '/one/,+1d' file
no sed sed '/ONE/Id' file
no sed sed 's/\bone//' file
no sed sed -s p file
ok sed sed -n -e '/one/,/two/p' -e '$!d' file
is sed sed -e s/two/2/ -e 's/three/3/' file | tail -n 1|3
ok sed sed -E 's/(1|2)/n/' file
ok awk awk -F: '{ print $1 }' /etc/group
fails awk awk 'BEGIN { print gensub("a", "b", "g", "a") }'
ok grep grep -qxF three file
no grep grep -P thr.. file
ok head head -n 1 file
ok head head -1 file
no head head --lines=1 file
ok tail tail -n 1 file
is tail tail -r file | head -1|three
no tail tail --lines=1 file
ok tr echo a | tr -d '\n'
no tr echo a | tr --delete a
no tr echo a | tr -t a b
ok sort sort -u file
no sort sort --unique file
ok uniq uniq -c file
no uniq uniq -w 3 file
ok cut cut -d: -f1 /etc/group
no cut cut --complement -f1 /etc/group
ok wc wc -l file
no wc wc --lines file
ok xargs echo a b | xargs -n 1 echo
is xargs xargs echo x </dev/null|
no xargs echo a | xargs -d , echo
no xargs echo tree | xargs stat -c %n
no xargs echo a | xargs --no-run-if-empty echo
ok tee echo a | tee -a tee1
no tee echo a | tee --append tee1
ok cmp cmp -s file file
no cmp cmp --silent file file
ok comm comm -12 file file
ok printf printf '%s\n' a
ok seq seq -w 1 3
no seq seq --equal-width 1 3
is md5 printf a | md5|0cc175b9c0f1b6a831c399e269772661
no md5 md5 --check file
ok ed printf '1p\nq\n' | ed -s file
ok tar tar -cf t.tar tree
no tar tar --owner=0 -cf t.tar tree
ok gzip gzip -c file
no gzip gzip --rsyncable file
ok bzip2 bzip2 -c file
ok xz xz -c file
# processes and the system
ok ps ps -axww -o pid,ppid,pgid,stat,command
# every process is listed, whatever its number and its parent's, in the form that tests ask for most, too; one that is just being
# started has no command line yet, hence three tries
is ps n=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & p="$p $!"; done; for try in 1 2 3; do [ $n = 12 ] || { n=0; l=$(ps -axww -o pid,ppid,stat,command); for i in $p; do echo "$l" | grep -q "^ *$i  *$$ .*sleep 60" && n=$((n + 1)); done; }; done; kill $p; echo $n|12
ok ps ps -o pid= -p 1
# the kernel's threads have the PID -1
is ps ps -axww -o pid,ppid,stat,command | grep -c '^ *-1  *0 .*(idle_0)$'|1
is ps ps -ax -o pid,lstart,command | grep -c '^ *-1 .*(syncer)$'|1
is ps ps -axww -o pid,ppid,stat,command | grep -c '^ *0  *-1 .*(swapper)$'|1
is ps ps -o pid,command -p 1 | grep -c idle_0|0
ok ps ps -o lstart -p 1
fails ps ps -o etime -p 1
fails ps ps -eo pid,cmd
no ps ps --ppid 1
fails ps ps -o cmd -p 1
ok pgrep pgrep -f init
no pgrep pgrep --full init
no pgrep pgrep -a -e init
no pkill pkill --signal 0 nosuch
no env env --ignore-environment true
ok time time -p true
no time time stat -c %n file
no time time --portability true
no id id --user
is id id -un|root
is uname uname -sr|DragonFly 6.4-RELEASE
no uname uname -o
no uname uname --all
no hostname hostname -I
ok date date -u +%s
ok date date -j -u 202501020304.05 +%s
is date date -u -r 0 +%Y|1970
ok date date -u -f %s "$(date -u +%s)"
ok date date -u "$(date -u +%Y%m%d%H%M.%S)"
is date date -j -u -f %s 1735787045 +%Y%m%d%H%M.%S|202501020304.05
fails date date -u -f %s nonsense
no date date -d yesterday
no date date --utc
no date date @1
ok sysctl sysctl -n hw.ncpu
no sysctl sysctl -p
fails sysctl sysctl net.ipv4.ip_forward
fails sysctl sysctl -w no.such=1
is sysctl sysctl -n debug.panic|0
is sysctl sysctl kern.seedenable=1; sysctl -q kern.seedenable=0|kern.seedenable: 0 -> 1
ok sysctl sysctl -n kern.clockrate
fails sysctl sysctl kern.hz
fails sysctl sysctl vm.swap_info
ok service service sshd rcvar
no service service sshd
no service service --status-all
fails service service nosuch start
no shutdown shutdown -p
no shutdown shutdown -x now
no shutdown shutdown --help
no poweroff poweroff -f
no halt halt -f
no reboot reboot -x
no chroot chroot --userspec=0:0 / true
ok dmesg dmesg
no dmesg dmesg -T
is procfs ls /proc/$$ | xargs echo|cmdline ctl dbregs etype file fpregs map mem note notepg regs rlimit status
is procfs ls -d /proc/$$/exe 2>/dev/null || test -e /proc/1/exe || test -e /proc/1/root || test -e /proc/1/cwd || echo none|none
is procfs readlink /proc/$$/file|/bin/sh
is procfs tr '\0' ' ' </proc/$$/cmdline | cut -c1-5|sh -c
is procfs ls /proc | grep -c '^1$'|1
# accounts
ok pw cp /etc/master.passwd /etc/group . && chmod 600 master.passwd && pw -V "$d" useradd guest1 -s /bin/sh
ok pw printf 'x\n' | pw -V "$d" usermod guest1 -h 0
fails pw pw -V "$d" usermod guest1 -h 0 </dev/null
fails pw pw -V "$d" userdel nosuch
ok pw pw -V "$d" userdel guest1
no pw pw usermod root --shell /bin/sh
no pw pw usermod root -z
no pw pw frobnicate
fails pw pw usermod root -s /no/such/shell
fails pwd_mkdb pwd_mkdb -p nosuch
no pwd_mkdb pwd_mkdb -x file
no chsh chsh --shell /bin/sh root
# An edit of /etc/passwd changes nobody: look-ups go to the database
is passwd cp /etc/passwd saved; sed -i '' -e 's,^root:.*,root:*:0:0:changed:/elsewhere:/bin/sh,' /etc/passwd; echo ~root; cat saved >/etc/passwd|/root
# disks
known fdisk fdisk -IB /dev/da9
no fdisk fdisk -l /dev/da9
no fdisk fdisk -IZ /dev/da9
known disklabel disklabel -r -w -B /dev/da9s1 auto
no disklabel disklabel -I da9s1
fails disklabel disklabel da9s1
known newfs newfs -U /dev/da9s1a
no newfs newfs --bad /dev/da9s1a
no newfs newfs -q /dev/da9s1a
known newfs_hammer2 newfs_hammer2 -L ROOT /dev/da9s1d
no newfs_hammer2 newfs_hammer2 -q /dev/da9s1d
fails mount mount -t ext4 /dev/da0s1d /mnt
no mount mount --bind /tmp /mnt
no mount mount -n /tmp /mnt
fails mount mount /dev/da9s1d /mnt
fails mount_cd9660 mount_cd9660 /dev/cd9 /mnt
no mount_cd9660 mount_cd9660 -t x /dev/cd0 /mnt
known mount_hammer2 mount_hammer2 -o ro /dev/da9s1d /mnt
no mount_hammer2 mount_hammer2 -r /dev/da9s1d /mnt
ok mount mkdir m n && mount -t tmpfs tmpfs m && touch m/in && mount -t null m n && test -e n/in && umount n && umount m
ok mount_tmpfs mkdir -p mt && mount_tmpfs -s 1m tmpfs mt && umount mt
fails umount umount tree
no umount umount -l tree
no umount umount --force tree
known fsck fsck -p /dev/da9s1a
no fsck fsck -Z /dev/da9s1a
no swapon swapon --show
is mount mount | grep ' on /dev '|devfs on /dev (devfs, nosymfollow, local)
is mount mount | grep ' on /proc '|procfs on /proc (procfs, local)
is disk:mount mount | head -n 1|da0s1d on / (hammer2, local)
is disk:mount mount | grep ' on /boot '|/dev/da0s1a on /boot (ufs, local)
is disk:mount mount -p | head -n 1 | tr '\t' :|da0s1d:/:hammer2 rw:1 1
# a null mount's ro is in mount -p alone; a blank is no \040 there
is mount mkdir -p 'b 1' c1 && mount -t null -o ro 'b 1' c1 && mount | sed -n "s,$d/,,gp"; umount c1|b 1 on c1 (null, local)
is mount mkdir -p 'b 2' c2 && mount -t null -o ro 'b 2' c2 && mount -p | sed -n "s,$d/,,gp" | tr '\t' :; umount c2|b 2:c2:null ro:0 0
is mount mount -t null tree c1; mount -t null tree c1; mount | grep -c " on $d/c1 (null"; umount c1; umount c1|2
is mount mkdir -p c3; mount -t devfs devfs c3; mount | sed -n "s,$d/,,gp"; umount c3|devfs on c3 (devfs, nosymfollow, local)
# the console is the serial line, so its call-out device is busy
fails cuaa0 echo x >/dev/cuaa0
# the CD's own files
is cd:files cd / && ls -d README README.USB autorun autorun/*.png autorun/stylesheet.css autorun.bat autorun.inf autorun.pif index.html dflybsd.ico boot.catalog | wc -l | tr -d ' '|14
is cd:files test -d /autorun && rm -f /autorun 2>&1|rm: /autorun: is a directory
# acdN and cdN are two nodes of one drive: each can be mounted once, whatever the other does
is cd:pfi mount | grep ' on /mnt '|/dev/acd1 on /mnt (cd9660, read-only, local)
is cd:pfi tail -n 1 /etc/pfi.conf|pfi_found_on_device='/dev/acd1'
ok cd:drives mkdir x1 && mount_cd9660 /dev/cd1 x1 && test -f x1/pfi.conf && umount x1
is cd:drives mount_cd9660 /dev/acd1 x1 2>&1|mount_cd9660: /dev/acd1: Device busy
ok cd:drives mkdir x2 && mount_cd9660 /dev/acd0 x2 && test -d x2/autorun && umount x2
is cd:drives mount_cd9660 /dev/cd0 x2 2>&1|mount_cd9660: /dev/cd0: Device busy
ok cd:drives mkdir x3 x4 && mount_cd9660 /dev/cd2 x3 && mount_cd9660 /dev/acd2 x4 && umount x3 && umount x4
# a new disk, then the same disk again
is cd:fdisk fdisk -IB /dev/da0 2>&1 | sed -n 2p|fdisk: invalid fdisk partition table found
is cd:fdisk test -c /dev/da0s1 && test ! -e /dev/da0s1a && echo yes|yes
fails cd:disklabel disklabel da0s1
ok cd:disklabel disklabel -r -w -B /dev/da0s1 auto
ok cd:disklabel disklabel da0s1 >l && printf 'a: 64M 0 4.2BSD\nd: 3G * HAMMER2\n' >>l && disklabel -R -r da0s1 l
ok cd:newfs newfs /dev/da0s1a
# no -f for 3 GB
ok cd:newfs_hammer2 newfs_hammer2 -L ROOT /dev/da0s1d
is cd:mount mkdir h && mount -t hammer2 /dev/da0s1d h && mount | sed -n "s, on $d/, on ,p"; umount h|/dev/da0s1d@ROOT on h (hammer2, local)
is cd:fdisk fdisk -IB /dev/da0 2>&1 | grep -c 'invalid fdisk'|0
is cd:fdisk test -c /dev/da0s1a && test -c /dev/da0s1d && echo old|old
is cd:disklabel disklabel -r -w -B /dev/da0s1 auto; test -e /dev/da0s1d || echo gone|gone
ok cd:disklabel n=0; until [ ! -e /dev/da0s1a ]; do n=$((n + 1)); [ $n -lt 30 ] || exit 1; sleep 1; done
# the network
ok ifconfig ifconfig -a
ok ifconfig ifconfig vtnet0
fails ifconfig ifconfig eth0
no ifconfig ifconfig -s
no ifconfig ifconfig --help
known route route -n get default
no route route -x get default
no route route --help
no dhclient dhclient -r vtnet0
ok ping ping -c 1 127.0.0.1
no ping ping -w 1 127.0.0.1
no drill drill --help
known drill drill localhost A
fails nc nc -z -w 1 127.0.0.1 1
no fetch fetch -z x
no fetch fetch --output=x y
fails fetch fetch -o x http://127.0.0.1:1/
no dntpd dntpd -Z
no pkg /usr/local/sbin/pkg update --frobnicate
no pkg /usr/local/sbin/pkg install -z bash
no pkg /usr/local/sbin/pkg frobnicate
ok pkg /usr/local/sbin/pkg info -e pkg
is pkg command -v pkg >/dev/null || echo 'not in the PATH of rc'|not in the PATH of rc
ok sshd ssh-keygen -q -N '' -f key && /usr/sbin/sshd -t -h "$d/key"
is disk:sshd /usr/sbin/sshd -T | grep '^permitrootlogin '|permitrootlogin without-password
is disk:git PATH=$PATH:/usr/local/bin; git init -q --bare b.git && git clone -q -u git-upload-pack "file://$d/b.git" g1; test -d g1/.git && echo cloned|cloned
is devices test -c /dev/ttyd0 && test ! -e /dev/sda && echo yes|yes
absent timeout
absent host
absent dig
absent nslookup
absent wget
absent curl
absent bash
absent git
absent rsync
absent sudo
absent doas
absent gmake
absent make
absent tac
absent ip
absent lsblk
absent apt
absent systemctl
absent busybox
absent setsid
absent nproc
absent free
absent sha256sum
absent md5sum
absent mkfs
absent udhcpc
absent shuf
END
cd /
rm -rf "$d"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
