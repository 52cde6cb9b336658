# Choose slot A or B from U-Boot's environment, as bascule keeps it (slots.boot_control = "uboot").
#
#   mkimage -T script -C none -d uboot-ab.cmd boot.scr
#
# BOOT_ORDER="a b" or "b a": the slots, the preferred one first.
# BOOT_x_OK=1: confirmed, boots for ever. BOOT_x_LEFT=1 to 9: on trial, so many boots are left.
# Else: never. A try is counted durably before the boot; where it cannot be, the slot is passed over,
# and so is one whose kernel or initrd does not load. docs/loaders.md has the whole story.
#
# A board sets these before (in its own environment, or by lines above this one):
#   bascule_store    "saveenv": the variables are in U-Boot's own environment, with two copies.
#                    Else they are in a file of 0x200 bytes beside this script, in the form that
#                    `env export -c` and fw_setenv write.
#   bascule_file     that file; default uboot.env
#   bascule_kernel, bascule_initrd, bascule_scratch   addresses to load to; defaults for x86
#   bascule_start    starts the kernel, of ${bascule_size} bytes, with an initrd of ${filesize};
#                    default for x86. For arm64: booti ${bascule_kernel} ${bascule_initrd}:${filesize} ${fdtcontroladdr}
#   bascule_args     more of the kernel's command line; default console=ttyS0 panic=-1
#
# Commands: env import and export, or saveenv; load, fatwrite, test, echo, reset. No setexpr.

# Defaults, and all else that is only for this boot, are shell variables without setenv: saveenv does
# not keep them, so another default of a later script wins. ${…} finds the environment's first.
test -n "${bascule_store}" || bascule_store=file
test -n "${bascule_file}" || bascule_file=uboot.env
test -n "${bascule_scratch}" || bascule_scratch=0x2000000
test -n "${bascule_kernel}" || bascule_kernel=0x1000000
# Well above the place where the kernel unpacks itself (16 to some 90 MiB), else it dies in silence.
test -n "${bascule_initrd}" || bascule_initrd=0x10000000
test -n "${bascule_args}" || bascule_args="console=ttyS0 panic=-1"

known=1
if test "${bascule_store}" != "saveenv"; then
  setenv BOOT_ORDER; setenv BOOT_a_OK; setenv BOOT_a_LEFT; setenv BOOT_b_OK; setenv BOOT_b_LEFT
  known=0
  if load ${devtype} ${devnum}:${distro_bootpart} ${bascule_scratch} ${bascule_file}; then
    if test "${filesize}" = "200"; then
      if env import -c ${bascule_scratch} 0x200 BOOT_ORDER BOOT_a_OK BOOT_a_LEFT BOOT_b_OK BOOT_b_LEFT; then known=1; fi
    fi
  fi
fi

failed=0
if test "${known}" = "1"; then
  for slot in ${BOOT_ORDER}; do
    # An assignment of nothing would leave the old value, so each has a word for "none".
    ok=0
    if test "${slot}:${BOOT_a_OK}" = "a:1"; then ok=1; fi
    if test "${slot}:${BOOT_b_OK}" = "b:1"; then ok=1; fi
    # One less than the tries left, or none when that is 0 or no digit.
    less=none
    fewer=none
    for digit in 0 1 2 3 4 5 6 7 8 9; do
      if test "${slot}:${BOOT_a_LEFT}" = "a:${digit}"; then fewer=${less}; fi
      if test "${slot}:${BOOT_b_LEFT}" = "b:${digit}"; then fewer=${less}; fi
      less=${digit}
    done

    may=0
    if test "${ok}" = "1"; then
      may=1
    else
      if test "${fewer}" != "none"; then
        setenv BOOT_${slot}_LEFT ${fewer}
        if test "${bascule_store}" = "saveenv"; then
          if saveenv; then may=1; fi
        else
          if env export -c -s 0x200 ${bascule_scratch} BOOT_ORDER BOOT_a_OK BOOT_a_LEFT BOOT_b_OK BOOT_b_LEFT; then
            if fatwrite ${devtype} ${devnum}:${distro_bootpart} ${bascule_scratch} ${bascule_file} 0x200; then may=1; fi
          fi
        fi
        if test "${may}" = "0"; then echo "bascule: slot ${slot} is passed over: its try cannot be counted"; fi
      fi
    fi

    if test "${may}" = "1"; then
      echo "bascule: slot=${slot} ok=${ok} left=${fewer}"
      setenv bootargs "bascule.slot=${slot} ${bascule_args}"
      if load ${devtype} ${devnum}:${distro_bootpart} ${bascule_kernel} /bascule/${slot}/linux; then
        bascule_size=0x${filesize}
        if load ${devtype} ${devnum}:${distro_bootpart} ${bascule_initrd} /bascule/${slot}/initrd; then
          if test -n "${bascule_start}"; then
            run bascule_start
          else
            zboot ${bascule_kernel} ${bascule_size} ${bascule_initrd} ${filesize}
          fi
        fi
      fi
      echo "bascule: slot ${slot} does not start"
      failed=1
    fi
  done
  if test "${failed}" = "1"; then
    sleep 2
    reset
  fi
  echo "bascule: neither slot may boot; choose by hand, then run: bascule confirm"
else
  echo "bascule: no whole environment in ${bascule_file}: which slot is whole is not known, so none boots"
fi
