#!/bin/sh
# rootfs.sh PROGRAM FOLDER: makes a root file system of one program and the shared libraries that it names, for an image
# that holds nothing else. The program may be for another architecture: it is read, not run.
set -eu
program=$1
root=$2

if [ -e "$root" ]; then
  echo "rootfs.sh: $root is there already" >&2
  exit 1
fi
mkdir -p "$root/etc" "$root/tmp"
# What a debugger needs stays with the builder. STRIP names the tool of another architecture.
"${STRIP:-strip}" -o "$root/$(basename "$program")" "$program"
chmod 755 "$root/$(basename "$program")"

machine=$(readelf -h "$program" | sed -n 's/ *Machine: *//p')

# The libraries of a file, its loader first.
needed() {
  readelf -l "$1" 2>/dev/null | sed -n 's/.*Requesting program interpreter: \(.*\)]/\1/p'
  readelf -d "$1" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

# The file of a library, for the program's own architecture.
locate() {
  for file in /lib/*/"$(basename "$1")" /usr/lib/*/"$(basename "$1")" /usr/*/lib/"$(basename "$1")" "/lib64/$(basename "$1")" "/lib/$(basename "$1")"; do
    if [ -e "$file" ] && [ "$(readelf -h "$file" 2>/dev/null | sed -n 's/ *Machine: *//p')" = "$machine" ]; then
      echo "$file"
      return
    fi
  done
  echo "rootfs.sh: $1 is nowhere on this machine for $machine" >&2
  exit 1
}

# A library that is named by its path (the loader) goes there, the others where the loader looks.
install_library() {
  case "$1" in
    /*) target=$root$1 ;;
    *) target=$root/lib/$1 ;;
  esac
  if [ -e "$target" ]; then
    return
  fi
  found=$(locate "$1")
  mkdir -p "$(dirname "$target")"
  cp -L "$found" "$target"
  for library in $(needed "$found"); do
    install_library "$library"
  done
}

for library in $(needed "$program"); do
  install_library "$library"
done

# A user to be, and the order in which names are looked for.
echo 'root:x:0:0:root:/:/none
portolan:x:65532:65532:portolan:/:/none' > "$root/etc/passwd"
echo 'root:x:0:
portolan:x:65532:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
