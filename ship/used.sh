# In a system without a compiler: install the wheel that lies here, and use it.
set -eu
say() { echo "  $*"; }

! command -v gcc cc
python3 -m venv venv
venv/bin/pip install -q xenemu-*.whl
export PATH=$PWD/venv/bin:$PATH
say "$(xenemu --version), $(python3 --version), $(. /etc/os-release; echo "$PRETTY_NAME")"

xenemu doctor run initramfs confine | sed 's/^/  /'
xenemu inspect vmlinuz >log; grep -q "pvh *yes" log
xenemu run hello >log 2>&1; grep -q "Test result: SUCCESS" log
say "hello: $(tail -n 1 log)"
for mode in pv pvh; do
    xenemu run vmlinuz --mode $mode --initrd initrd.gz --cmdline console=hvc0 >log 2>&1
    grep -q INIT-OK log
    say "Debian's kernel, $mode: $(tail -n 1 log)"
done
printf 'uname -r; exit\n' | xenemu run vmlinuz --busybox /usr/bin/busybox \
    --cmdline "console=hvc0 quiet" >log 2>&1
say "a shell of busybox: $(tail -n 1 log)"
xenemu smoke vmlinuz --mode pv --mode pvh --initrd initrd.gz --cmdline console=hvc0 \
    --expect INIT-OK 2>/dev/null | tail -n 1 | sed 's/^/  smoke: /'

grep -q '^.TH XENEMU-RUN 1' venv/share/man/man1/xenemu-run.1
bash -euc '. venv/share/bash-completion/completions/xenemu
    COMP_WORDS=(xenemu smoke --exec) COMP_CWORD=2; _xenemu_completion xenemu
    [ "${COMPREPLY[*]}" = --executor ]'
say "bash completes"
fish -c 'source venv/share/fish/vendor_completions.d/xenemu.fish
    complete -C "xenemu smoke --exec"' | grep -q '^--executor'
say "fish completes"
_XENEMU_COMPLETE=complete_zsh _TYPER_COMPLETE_ARGS="xenemu smoke --exec" xenemu | grep -q -e --executor
zsh -c 'fpath=(venv/share/zsh/site-functions $fpath); autoload -U compinit; compinit -D
    [ "${_comps[xenemu]}" = _xenemu ]'
say "zsh completes"
