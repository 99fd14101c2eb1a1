#!/bin/sh
# Sets wchan up without root: a Python environment of its own with the libraries and, where they
# exist as wheels, the debuggers; a copy of the plugin; and the launcher, bin/wchan.
#
# What is installed is a copy: the launcher and the lines in ~/.lldbinit and ~/.gdbinit go on
# working when the clone is moved, switched to another branch or deleted, and a half-made pull
# never breaks a debugger.  Only --test runs what lies in the clone itself.

set -eu

# The caller's own Python settings must not leak into the environment made here.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV CDPATH
export PIP_USER=0

usage() {
    cat <<'END'
usage: ./install.sh [--prefix DIR] [--demo | --test] [--init-files]
       ./install.sh [--prefix DIR] --uninstall

  --prefix DIR   install under DIR, launcher DIR/bin/wchan (default: ~/.local)
  --demo         set up, then run wchan demo
  --test         set up, then run every check and test on this checkout
  --init-files   load wchan in every lldb and gdb: one line in ~/.lldbinit and ~/.gdbinit
  --uninstall    remove exactly what was installed
  --help         this text

Everything but the launcher lies in DIR/share/wchan. Set PYTHON to choose the Python (3.9 or
later) to build on. Run it again to upgrade in place.
END
}

say() {
    printf '%s\n' "$*"
}

complain() {
    printf 'install.sh: %s\n' "$*" >&2
}

die() {
    complain "$@"
    exit 1
}

wrong_usage() {
    complain "$*; see ./install.sh --help"
    exit 2
}

# ---------------------------------------------------------------------------- arguments

checkout=$(cd "$(dirname -- "$0")" && pwd -P)
prefix=
mode=install
init_files=no
failed=

set_mode() {
    if [ "$mode" != install ] && [ "$mode" != "$1" ]; then
        wrong_usage "--$mode and --$1 exclude each other"
    fi
    mode=$1
}

while [ $# -gt 0 ]; do
    case $1 in
        --prefix)
            [ $# -ge 2 ] || wrong_usage "--prefix needs a directory"
            prefix=$2
            shift
            [ -n "$prefix" ] || wrong_usage "--prefix needs a directory"
            ;;
        --prefix=*)
            prefix=${1#--prefix=}
            [ -n "$prefix" ] || wrong_usage "--prefix needs a directory"
            ;;
        --demo) set_mode demo ;;
        --test) set_mode test ;;
        --uninstall) set_mode uninstall ;;
        --init-files) init_files=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) wrong_usage "unknown argument '$1'" ;;
    esac
    shift
done
if [ "$mode" = uninstall ] && [ "$init_files" = yes ]; then
    wrong_usage "--uninstall and --init-files exclude each other"
fi

if [ -z "$prefix" ]; then
    [ -n "${HOME:-}" ] || die "HOME is not set: say where to install with --prefix DIR"
    prefix=$HOME/.local
fi
case $prefix in
    /*) ;;
    *) prefix=$(pwd)/$prefix ;;
esac
while :; do
    case $prefix in
        */) prefix=${prefix%/} ;;
        *) break ;;
    esac
done
newline='
'
case $prefix in
    # Python itself refuses environments in such a place: ':' separates the entries of PATH.
    *:* | *"$newline"*) die "the prefix may contain neither ':' nor a line break: $prefix" ;;
esac

if [ "$init_files" = yes ]; then
    [ -n "${HOME:-}" ] || die "HOME is not set: there is no ~/.lldbinit or ~/.gdbinit to write"
    case $prefix in
        *[\"\'\`\\]*) die "--init-files cannot quote this prefix for the debuggers: $prefix" ;;
    esac
fi

home=$prefix/share/wchan
app=$home/app
venv=$home/venv
deps=$home/deps
manifest=$home/manifest
launcher=$prefix/bin/wchan
launcher_mark='# Starts wchan; written by its install.sh.'
init_mark='# wchan: written by install.sh --init-files'
lldb_line="script lldb.debugger.HandleCommand('command script import \"$app/plugin\"')  $init_mark"
gdb_line="python gdb.execute(\"source $app/plugin/kernel-gdb.py\")  $init_mark"

# ---------------------------------------------------------------------------- the manifest
# One line for each thing outside $home that was made, and for each directory:
#   dir PATH            made by mkdir: removed again once it is empty
#   file PATH           removed if it is still the one that was written
#   init-made PATH      an init file that was not there before
#   init-line PATH      an init file that was

record() {
    if ! [ -f "$manifest" ] || ! grep -qxF -- "$1" "$manifest"; then
        printf '%s\n' "$1" >>"$manifest"
    fi
}

make_directories() {
    made=
    for wanted in "$home" "$prefix/bin"; do
        directory=$wanted
        while ! [ -d "$directory" ] && [ -n "$directory" ]; do
            made="${made}dir $directory$newline"
            directory=${directory%/*}
        done
        mkdir -p -- "$wanted" 2>/dev/null || die "cannot write to $prefix: choose another --prefix"
    done
    if ! [ -w "$home" ] || ! [ -w "$prefix/bin" ]; then
        die "cannot write to $prefix: choose another --prefix"
    fi
    printf '%s' "$made" | while IFS= read -r line; do
        record "$line"
    done
}

# ---------------------------------------------------------------------------- init files

ends_in_newline() {
    [ -z "$(tail -c 1 -- "$1")" ]
}

# A file that ends in the middle of a line still does so after the line was added and after it
# was removed: both leave a user's own bytes as they were.  Written with cat, never mv: the file
# may be a symbolic link into somebody's collection of dotfiles.
add_init_line() { # FILE LINE
    if [ -f "$1" ] && grep -qxF -- "$2" "$1"; then
        say "$1 loads wchan already"
        return
    fi
    if ! [ -e "$1" ]; then
        record "init-made $1"
        printf '%s\n' "$2" >"$1"
    elif [ -s "$1" ] && ! ends_in_newline "$1"; then
        record "init-line $1"
        printf '\n%s' "$2" >>"$1"
    else
        record "init-line $1"
        printf '%s\n' "$2" >>"$1"
    fi
    say "$1 loads wchan from now on"
}

remove_init_line() { # FILE LINE
    [ -f "$1" ] && grep -qxF -- "$2" "$1" || return 0
    end=no
    if ends_in_newline "$1"; then
        end=yes
    fi
    LINE=$2 END=$end awk '
        $0 != ENVIRON["LINE"] { printf "%s%s", (kept++ ? "\n" : ""), $0 }
        END { if (kept && ENVIRON["END"] == "yes") printf "\n" }
    ' "$1" >"$home/init.new"
    cat -- "$home/init.new" >"$1"
    rm -f -- "$home/init.new"
    say "removed the line for wchan from $1"
}

write_init_files() {
    for name in lldb gdb; do
        debugger=$(on_path "$name")
        case $name in
            lldb) line=$lldb_line ;;
            gdb) line=$gdb_line ;;
        esac
        if [ -z "$debugger" ] || can_load "$name" "$debugger"; then
            add_init_line "$HOME/.${name}init" "$line"
        else
            say "$debugger has no Python that works and would complain at every start:" \
                "$HOME/.${name}init is left alone. The line for another $name is: $line"
        fi
    done
    preferred=${XDG_CONFIG_HOME:-$HOME/.config}/gdb/gdbinit
    if [ -e "$preferred" ]; then
        say "note: gdb reads $preferred instead of ~/.gdbinit; copy the line there"
    fi
}

# ---------------------------------------------------------------------------- --uninstall

is_ours() { # FILE: this installation's launcher, or a checkout's pointer to its libraries
    [ -f "$1" ] && grep -qxF -e "$launcher_mark" -e "$deps" -- "$1"
}

# The manifest goes with what it lists; directories that hold anything else stay.
remove_directories() {
    directories=$(sed -n 's/^dir //p' "$manifest" | sort -r)
    rm -f -- "$manifest"
    printf '%s\n' "$directories" | while IFS= read -r directory; do
        if [ -n "$directory" ]; then
            rmdir -- "$directory" 2>/dev/null || :
        fi
    done
}

uninstall() {
    if ! [ -f "$manifest" ]; then
        say "nothing to remove: no wchan under $prefix"
        return
    fi
    while read -r kind path; do
        case $kind in
            file)
                if is_ours "$path"; then
                    rm -f -- "$path"
                fi
                ;;
            init-made | init-line)
                remove_init_line "$path" "$lldb_line"
                remove_init_line "$path" "$gdb_line"
                if [ "$kind" = init-made ] && [ -f "$path" ] && ! [ -s "$path" ]; then
                    rm -f -- "$path"
                fi
                ;;
        esac
    done <"$manifest"
    rm -rf -- "$venv" "$venv.old" "$app" "$app.old" "$app.new" "$deps" "$deps.new" "$home/pip.log"
    remove_directories
    say "removed wchan from $prefix"
    if [ -d "$home" ]; then
        say "left in place: $home (holds files that install.sh did not make)"
    fi
}

# ---------------------------------------------------------------------------- a Python

# Prints one word and the version: "full" can run the debugger wheels too, "plain" cannot,
# "old" and "novenv" are of no use.  The code must be valid in any Python, however old.
# shellcheck disable=SC2016 # nothing in it is meant for the shell
probe='
import sys
version = "%d.%d.%d" % sys.version_info[:3]
def verdict():
    if sys.version_info < (3, 9):
        return "old"
    try:
        import ensurepip, venv
    except ImportError:
        return "novenv"
    import os, platform, sysconfig
    if not sys.platform.startswith("linux"):
        return "full"
    if sys.version_info < (3, 10) or platform.machine() not in ("x86_64", "aarch64"):
        return "plain"
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [sys.base_exec_prefix + "/lib", sysconfig.get_config_var("LIBDIR") or ""]
    found = ".so" in name and any(os.path.exists(os.path.join(f, name)) for f in folders)
    return "full" if found else "plain"
print(verdict() + " " + version)
'

# Sets $python.  The newest one is taken that can run the debugger wheels (they need its
# libpython as a shared library), else the newest that can run the rest.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3
    fi
    python=
    refused=
    for candidate in "$@"; do
        found=$(command -v "$candidate" 2>/dev/null) || continue
        # A name on PATH may still be a stub that only says where to get Python.
        answer=$("$found" -c "$probe" 2>/dev/null) || answer=
        version=${answer#* }
        case $answer in
            full\ *)
                python=$found
                python_version=$version
                break
                ;;
            plain\ *)
                if [ -z "$python" ]; then
                    python=$found
                    python_version=$version
                fi
                ;;
            old\ *) refused="${refused}$found is Python $version; " ;;
            novenv\ *)
                refused="${refused}$found ($version) lacks the modules venv and ensurepip"
                refused="${refused} (Debian and Ubuntu: apt install python3-venv); "
                ;;
            *) refused="${refused}$found does not run; " ;;
        esac
    done
    [ -z "$python" ] || return 0
    if [ -n "${PYTHON:-}" ] && [ -z "$refused" ]; then
        die "PYTHON=$PYTHON: no such program"
    fi
    case $(uname -s) in
        FreeBSD) advice='pkg install python311' ;;
        Darwin) advice='xcode-select --install, or any Python from python.org' ;;
        *) advice='Debian and Ubuntu: apt install python3 python3-venv' ;;
    esac
    die "wchan needs Python 3.9 or later; ${refused:-none was found on PATH; }install one" \
        "($advice) or name it: PYTHON=/path/to/python3 ./install.sh"
}

# ---------------------------------------------------------------------------- the environment

building=no

# Whatever ends the run, an environment is either complete or the one of before.
clean_up() {
    if [ "$building" = yes ]; then
        rm -rf -- "$venv"
        if [ -d "$venv.old" ]; then
            mv -- "$venv.old" "$venv"
        fi
    fi
    rm -rf -- "$app.new" "$deps.new" "$home/pip.log" "$home/cache"
    if ! [ -d "$venv" ] && [ -f "$manifest" ]; then
        remove_directories
    fi
}

# The names of the packages are said once, in pyproject.toml; what is installed for use, with
# versions and hashes, in requirements.lock.
requirements() { # core | EXTRA: one requirement a line
    "$venv/bin/python" -I - "$checkout/pyproject.toml" "$checkout/requirements.lock" "$1" <<'END'
import importlib, re, sys

for name in ("tomllib", "pip._vendor.tomli", "pip._vendor.toml"):
    try:
        toml = importlib.import_module(name)
        break
    except ImportError:
        continue
with open(sys.argv[1], encoding="utf-8") as file:
    project = toml.loads(file.read())["project"]
wanted = sys.argv[3]
optional = project["optional-dependencies"]
found = project["dependencies"] if wanted == "core" else optional[wanted]
if wanted != "test":
    def name_of(requirement):
        return re.split("[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")

    names = set(map(name_of, found))
    others = set(map(name_of, project["dependencies"] + optional["debuggers"]))
    with open(sys.argv[2], encoding="utf-8") as file:
        pinned = file.read().replace("\\\n", " ").splitlines()
    pinned = [line for line in pinned if line[:1].isalnum()]
    # What the optional ones need themselves is in the lock, and nowhere else.
    found = [
        line for line in pinned
        if name_of(line) in names or wanted == "extras" and name_of(line) not in others
    ]
print("\n".join(found))
END
}

pip_install() { # arguments of pip install; what it says goes to a log, causes of failures too
    rm -f -- "$home/pip.log"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --no-warn-script-location --log "$home/pip.log" "$@" >/dev/null 2>&1
}

pip_install_set() { # core | EXTRA
    requirements "$1" >"$venv/requirements-$1.txt" || return 1
    case $1 in
        test) pip_install -r "$venv/requirements-$1.txt" ;;
        *) pip_install --no-deps --require-hashes -r "$venv/requirements-$1.txt" ;;
    esac
}

# What went wrong, in a sentence, and what helps: the first cause that pip's log knows of.
what_pip_said() {
    if grep -qiE 'CERTIFICATE_VERIFY_FAILED|SSLError' "$home/pip.log"; then
        printf '%s' "the package index's certificate is not trusted (behind a proxy that opens" \
            " connections set PIP_CERT to its certificate)"
    elif grep -qiE 'do not match the hashes|hashes are required' "$home/pip.log"; then
        printf '%s' "a package is not the one that requirements.lock names: the package index" \
            " serves other files than PyPI"
    elif grep -qiE 'No space left|Disk quota' "$home/pip.log"; then
        printf '%s' "the disk is full"
    elif grep -qiE 'NewConnectionError|ConnectTimeout|ConnectionRefused|Connection refused|name resolution|unreachable|ProxyError|ReadTimeout' "$home/pip.log"; then
        printf '%s' "there is no way to the package index: is there a network? Behind a proxy or" \
            " with a mirror set HTTPS_PROXY or PIP_INDEX_URL"
    elif grep -qiE 'No matching distribution|Could not find a version' "$home/pip.log"; then
        printf '%s' "the package index does not have it for this Python and machine: " \
            "$(sed -n 's/^.*No matching distribution found for \([^ ;]*\).*$/\1/p' "$home/pip.log" | tail -n 1)"
    else
        sed -n 's/^.*ERROR: //p' "$home/pip.log" | tail -n 1
    fi
}

no_packages() { # what for
    why=$(what_pip_said)
    mv -- "$home/pip.log" "${TMPDIR:-/tmp}/wchan-pip.$$.log"
    die "pip could not install the packages $1: $why; its log is" \
        "${TMPDIR:-/tmp}/wchan-pip.$$.log"
}

# An environment that serves is kept: its Python runs, and it was completed.
environment_serves() {
    [ -f "$venv/.complete" ] && "$venv/bin/python" -I -c '' 2>/dev/null || return 1
    # A Python asked for by name is honoured even if the old one still serves.
    [ -z "${PYTHON:-}" ] || [ "$(sed -n 1p "$venv/.complete")" = "$PYTHON" ]
}

make_environment() {
    wanted_sum=$(cat -- "$checkout/pyproject.toml" "$checkout/requirements.lock" | cksum)
    if environment_serves; then
        if [ "$(sed -n 2p "$venv/.complete")" = "$wanted_sum" ] && [ -d "$deps/yaml" ]; then
            return
        fi
        say "updating the Python packages"
    else
        find_python
        say "setting up with Python $python_version ($python)"
        rm -rf -- "$venv.old"
        if [ -d "$venv" ]; then
            mv -- "$venv" "$venv.old"
        fi
        building=yes
        "$python" -m venv "$venv" >"$home/pip.log" 2>&1 ||
            die "$python -m venv failed: $(tail -n 1 "$home/pip.log")"
    fi
    pip_install_set core || no_packages "that wchan needs"
    if ! pip_install_set extras; then
        while IFS= read -r requirement; do
            printf '%s\n' "$requirement" >"$venv/requirement.txt"
            pip_install --no-deps --require-hashes -r "$venv/requirement.txt" ||
                say "going on without ${requirement%%[<>=;]*} (optional): $(what_pip_said)"
        done <"$venv/requirements-extras.txt"
    fi
    debuggers_complete=yes
    add_debuggers
    add_dependencies_for_other_pythons
    if [ "$debuggers_complete" = yes ]; then
        printf '%s\n' "${PYTHON:-}" "$wanted_sum" >"$venv/.complete"
    else
        # Tried again by the next run, which otherwise has nothing to do.
        printf '%s\n' "${PYTHON:-}" incomplete >"$venv/.complete"
    fi
    building=no
    rm -rf -- "$venv.old"
}

add_debuggers() {
    instead="the debuggers this system has are used"
    case $(uname -s)-$(uname -m) in
        Linux-x86_64 | Linux-aarch64) ;;
        *)
            say "no debugger wheels exist for $(uname -s) $(uname -m): $instead"
            return
            ;;
    esac
    answer=$("$venv/bin/python" -I -c "$probe")
    case $answer in
        full\ *) ;;
        plain\ 3.9.*)
            say "the debugger wheels need Python 3.10 or later, this is ${answer#* }: $instead"
            return
            ;;
        *)
            # Once it is there, the next run goes on here.
            debuggers_complete=no
            version=${answer#* }
            say "the debugger wheels need Python's shared library (Debian and Ubuntu:" \
                "apt install libpython${version%.*}, then run this again): $instead"
            return
            ;;
    esac
    say "fetching lldb and gdb as Python wheels (80 MB the first time)"
    if ! pip_install_set debuggers; then
        debuggers_complete=no
        say "pip could not install the debugger wheels: $instead. pip said: $(what_pip_said)"
        return
    fi
    for debugger in lldb gdb; do
        # lldb makes itself a cache as soon as it starts.
        if ! XDG_CACHE_HOME=$home/cache "$venv/bin/$debugger" --version >"$home/pip.log" 2>&1; then
            say "the $debugger from PyPI does not start here ($(tail -n 1 "$home/pip.log")): $instead"
            "$venv/bin/python" -m pip --quiet uninstall -y "$debugger-for-pwndbg" || :
        fi
    done
}

# A system's lldb or gdb embeds another Python, which sees neither this environment nor, as a
# rule, tabulate and PyYAML.  It gets them as plain files that any Python since 3.9 can import.
add_dependencies_for_other_pythons() {
    rm -rf -- "$deps.new"
    mkdir -- "$deps.new"
    # The newest tabulate may ask for a newer Python than the debugger's; where the package
    # index cannot be asked for an older one, this environment's copy has to do.
    pip_install --target "$deps.new" --no-deps --no-compile --only-binary :all: \
        --python-version 3.9 --implementation py --abi none --platform any \
        'tabulate>=0.8' || :
    "$venv/bin/python" -I - "$deps.new" <<'END'
import shutil, sys
from pathlib import Path

import tabulate, yaml

target = Path(sys.argv[1])
compiled = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
for module in (tabulate, yaml):
    source = Path(module.__file__)
    if (target / module.__name__).exists() or (target / source.name).is_file():
        continue
    if source.name == "__init__.py":
        shutil.copytree(source.parent, target / module.__name__, ignore=compiled)
    else:
        shutil.copy(source, target)
END
    rm -rf -- "$deps" "$deps.new/bin"
    mv -- "$deps.new" "$deps"
}

add_test_packages() {
    if [ -f "$venv/.complete-test" ] && [ "$(cat -- "$venv/.complete-test")" = "$wanted_sum" ]; then
        return
    fi
    say "adding the packages for the tests"
    pip_install_set test || no_packages "for the tests"
    printf '%s\n' "$wanted_sum" >"$venv/.complete-test"
}

# ---------------------------------------------------------------------------- the plugin

install_plugin() {
    sum=$(cd "$checkout" &&
        find plugin commands structs.yaml LICENSE -type f ! -name '*.pyc' -exec cksum {} + |
        sort | cksum)
    stamp="$sum $("$venv/bin/python" -I -c 'import sys; print(sys.version)' | head -n 1)"
    if [ -f "$app/.installed" ] && [ "$(cat -- "$app/.installed")" = "$stamp" ]; then
        return
    fi
    rm -rf -- "$app.new" "$app.old"
    mkdir -- "$app.new"
    for part in plugin commands structs.yaml LICENSE; do
        cp -R -- "$checkout/$part" "$app.new/"
    done
    find "$app.new" -name __pycache__ -type d -prune -exec rm -rf -- {} +
    printf '%s\n' "$deps" >"$app.new/.wchan-deps"
    printf '%s\n' "$stamp" >"$app.new/.installed"
    "$venv/bin/python" -I -m compileall -q -s "$app.new" -p "$app" "$app.new" ||
        die "the plugin does not compile: is $checkout a whole checkout?"
    if [ -d "$app" ]; then
        mv -- "$app" "$app.old"
    fi
    mv -- "$app.new" "$app"
    rm -rf -- "$app.old"
}

# A debugger may also load the plugin straight out of the checkout: it finds the libraries too.
record_in_checkout() {
    if [ -w "$checkout" ]; then
        printf '%s\n' "$deps" >"$checkout/.wchan-deps"
        record "file $checkout/.wchan-deps"
    fi
}

quoted() { # for a POSIX shell
    printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"
}

write_launcher() {
    record "file $launcher"
    cat >"$launcher.new" <<END
#!/bin/sh
$launcher_mark
# What the caller's Python is told to do must not reach this one, nor a debugger it starts.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
exec $(quoted "$venv/bin/python") -I -c '
import sys
sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "wchan"
from plugin.hosts.shell import main
sys.exit(main())' $(quoted "$app") "\$@"
END
    chmod +x "$launcher.new"
    mv -- "$launcher.new" "$launcher"
}

# ---------------------------------------------------------------------------- what to do next

can_load() { # lldb | gdb | kgdb, PROGRAM: it embeds a Python, and that works
    case $1 in
        lldb)
            XDG_CACHE_HOME=$home/cache "$2" --no-lldbinit --batch \
                -o 'script -l python -- print("wchan" + "-ok")' </dev/null 2>/dev/null
            ;;
        gdb) "$2" -nx -batch -ex 'python print("wchan" + "-ok")' </dev/null 2>/dev/null ;;
        # It starts on a kernel and dumps of its own choice: it is not run just to ask.
        kgdb) echo wchan-ok ;;
    esac | grep '^wchan-ok' >/dev/null
}

on_path() { # lldb | gdb | kgdb: the system's, prints nothing where there is none
    command -v "$1" 2>/dev/null && return
    # Debian and FreeBSD install lldb under versioned names alone.
    [ "$1" = lldb ] || return 0
    number=40
    while [ "$number" -gt 9 ]; do
        command -v "lldb-$number" 2>/dev/null || command -v "lldb$number" 2>/dev/null && return
        number=$((number - 1))
    done
}

show_how_to_load() {
    for name in lldb gdb kgdb; do
        debugger=$(on_path "$name")
        [ -n "$debugger" ] || continue
        line="source $app/plugin/kernel-gdb.py"
        if [ "$name" = lldb ]; then
            line="command script import \"$app/plugin\""
        fi
        if can_load "$name" "$debugger"; then
            say "in $debugger: $line"
        else
            say "$debugger has no Python that works and cannot load wchan"
        fi
    done
}

show_result() {
    if ! version=$("$launcher" --version 2>"$home/pip.log"); then
        complain "the installed wchan does not start: $(tail -n 1 "$home/pip.log")"
        # The tests tell more.
        [ "$mode" = test ] || exit 1
        failed=", wchan --version"
        return
    fi
    say "$version is installed: $launcher"
    case :${PATH:-}: in
        *:"$prefix/bin":*) ;;
        *) say "$prefix/bin is not on your PATH: add it, or call wchan by that name" ;;
    esac
    [ "$mode" = install ] || return 0
    if [ "$init_files" = no ]; then
        show_how_to_load
    fi
    say "next: wchan demo, or wchan VMCORE why-stuck; wchan --help lists all there is"
}

# ---------------------------------------------------------------------------- --test

check() { # NAME COMMAND...
    say "== $1"
    title=$1
    shift
    "$@" || failed="$failed, $title"
}

run_tests() {
    cd "$checkout"
    check "ruff check" "$venv/bin/python" -m ruff check --output-format concise plugin commands tests
    check "ruff format" "$venv/bin/python" -m ruff format --check plugin commands tests
    check "mypy" "$venv/bin/python" -m mypy
    before=$failed
    check "pytest" "$venv/bin/python" -m pytest -n auto --dist loadfile
    # pytest's own summary is the last line, unless it would hide that something else failed.
    if [ -n "$before" ]; then
        complain "failed: ${failed#, }"
    fi
    [ -z "$failed" ]
}

# ---------------------------------------------------------------------------- main

if [ "$mode" = uninstall ]; then
    uninstall
    exit 0
fi

for part in pyproject.toml requirements.lock plugin commands structs.yaml LICENSE; do
    [ -e "$checkout/$part" ] || die "$checkout has no $part: run install.sh where it lies in a clone"
done
if [ -e "$launcher" ] && ! grep -qxF -- "$launcher_mark" "$launcher"; then
    die "$launcher exists and is not wchan's: move it away or choose another --prefix"
fi
make_directories
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
make_environment
install_plugin
record_in_checkout
write_launcher
if [ "$init_files" = yes ]; then
    write_init_files
fi
show_result

case $mode in
    demo)
        say ""
        "$launcher" demo
        ;;
    test)
        add_test_packages
        run_tests
        ;;
esac
