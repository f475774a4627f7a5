alias h		history 25
alias ll	ls -lA
umask 22
set path = (/sbin /bin /usr/sbin /usr/bin /usr/games /usr/local/sbin /usr/local/bin $HOME/bin)
setenv	EDITOR	vi
setenv	PAGER	more
setenv	BLOCKSIZE	K
if ($?prompt) then
	set prompt = "%m# "
	set filec
	set history = 1000
endif
