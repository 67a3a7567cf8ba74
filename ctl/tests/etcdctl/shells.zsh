# Types lines into an interactive shell on a pseudo-terminal, TAB behind each, and prints what each line is then.
#   shells.zsh DIRECTORY SHELL ARGUMENT...
# The directory has "setup", which the shell reads first: it makes "ready", and lets ^G move the line into "line". It has "typed": a line
# behind "+" has to change (a completion that came too late on a busy machine is asked for again), one behind "=" need not.
zmodload zsh/zpty zsh/zselect
cd $1; shift
zpty -b shell "${(@q)@}"
drain() { local part; while zpty -r shell part 2>/dev/null; do print -rn -- $part >>shown; done }
await() {
    repeat 6000; do
        drain
        [[ -e $1 ]] && return
        zselect -t 1
    done
    print -ru2 "$1 never came; on the terminal: $(cat -v shown)"
    exit 1
}
zpty -w shell 'source ./setup'
await ready
for line in "${(@f)$(<typed)}"; do
    text=${line#?}
    repeat 20; do
        zpty -w -n shell "$text"$'\t'
        drain
        zpty -w -n shell $'\a'
        await line
        after=$(<line)
        rm line
        [[ $line == '='* || $after != $text ]] && break
    done
    print -r -- $after
done
zpty -d shell
