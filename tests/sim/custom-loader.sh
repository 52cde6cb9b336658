#!/bin/sh
# A boot loader that keeps its memory in a file, as an integrator's program would speak to it.
#
#   custom-loader.sh FILE read|boot|disarm SLOT|arm SLOT TRIES|confirm SLOT|reject SLOT
#
# The protocol of slots.custom_command in docs/loaders.md. FILE holds shell assignments:
# order="a b" a_ok=1 a_tries=0 b_ok=0 b_tries=0
set -eu
file=$1 verb=$2 slot=${3:-} tries=${4:-0}
. "$file"

is_armed() {
    case $1 in
        a) [ "$a_ok" = 1 ] || [ "$a_tries" -gt 0 ] ;;
        b) [ "$b_ok" = 1 ] || [ "$b_tries" -gt 0 ] ;;
    esac
}
target=
find_target() {
    target=
    for each in $order; do
        if [ -z "$target" ] && is_armed "$each"; then target=$each; fi
    done
}
fact() { # slot ok tries
    armed=false confirmed=false
    if is_armed "$1"; then armed=true; fi
    if [ "$2" = 1 ]; then confirmed=true; fi
    printf '"%s": {"armed": %s, "tries_left": %s, "confirmed": %s}' "$1" $armed "$3" $confirmed
}
refuse() {
    echo "$1" >&2
    exit 3
}
keep() {
    printf 'order="%s" a_ok=%s a_tries=%s b_ok=%s b_tries=%s\n' \
        "$order" $a_ok $a_tries $b_ok $b_tries >"$file.draft"
    sync "$file.draft"
    mv "$file.draft" "$file"
    sync "${file%/*}"
}

find_target
case $verb in
    read)
        quoted=null
        if [ -n "$target" ]; then quoted="\"$target\""; fi
        printf '{"target": %s, "max_tries": 5, "slots": {%s, %s}}\n' "$quoted" \
            "$(fact a $a_ok $a_tries)" "$(fact b $b_ok $b_tries)"
        exit 0 ;;
    boot)
        case $target in
            a) [ $a_ok = 1 ] || a_tries=$((a_tries - 1)) ;;
            b) [ $b_ok = 1 ] || b_tries=$((b_tries - 1)) ;;
            *) refuse "neither slot may boot" ;;
        esac
        keep
        echo "$target"
        exit 0 ;;
    disarm) ok=0 ;;
    arm) ok=0 first=$slot ;;
    confirm) ok=1 first=$slot ;;
    reject) ok=0 first=other ;;
    *) refuse "no such verb: $verb" ;;
esac
case $slot in
    a) a_ok=$ok a_tries=$tries other=b ;;
    b) b_ok=$ok b_tries=$tries other=a ;;
    *) refuse "no such slot: $slot" ;;
esac
case ${first:-} in
    "") ;;
    other) order="$other $slot" ;;
    *) order="$slot $other" ;;
esac
find_target
[ -n "$target" ] || refuse "$verb would leave nothing to boot"
keep
