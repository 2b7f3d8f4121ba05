#!/bin/bash
# What resumes guests in the initial RAM disk (dracut): cpr-load, the names of the guests whose units are enabled, KVM.
# shellcheck disable=SC2154 # dracut sets initdir, moddir, systemdsystemunitdir.

check() {
    require_binaries /usr/bin/cpr-load /usr/lib/cpr/resume-early || return 1
}

depends() {
    echo systemd
}

installkernel() {
    hostonly='' instmods kvm_intel kvm_amd vhost_net vhost_vsock tun
}

install() {
    local unit name
    inst_multiple /usr/bin/cpr-load /usr/lib/cpr/resume-early sh modprobe
    mkdir -p "$initdir/etc/cpr"
    for unit in "${dracutsysrootdir-}"/etc/systemd/system/*.wants/cpr@*.service; do
        name=${unit##*/cpr@}
        name=${name%.service}
        # What a guest is made of was saved with it: only its name is needed.
        if [[ -e ${dracutsysrootdir-}/etc/cpr/$name.toml ]]; then
            : >"$initdir/etc/cpr/$name.toml"
        fi
    done
    inst_simple "$moddir/cpr-early.service" "$systemdsystemunitdir/cpr-early.service"
    systemctl --quiet --root "$initdir" add-wants initrd.target cpr-early.service
}
