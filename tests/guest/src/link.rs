//! Network interfaces, by the ioctls of netdevice(7).

use std::ffi::c_char;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_netmask, libc::SIOCSIFNETMASK, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_neighbour, SIOCSARP, libc::arpreq);
    nix::ioctl_write_ptr_bad!(add_bridge, SIOCBRADDBR, libc::c_char);
    nix::ioctl_write_ptr_bad!(add_port, SIOCBRADDIF, libc::ifreq);

    // Of `linux/sockios.h`.
    const SIOCSARP: libc::c_int = 0x8955;
    const SIOCBRADDBR: libc::c_int = 0x89a0;
    const SIOCBRADDIF: libc::c_int = 0x89a2;
}

/// A request about the interface with the given name; the rest of it is zero.
pub fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name {name} is too long"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    Ok(request)
}

fn with_address(name: &str, address: Ipv4Addr) -> io::Result<libc::ifreq> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = socket_address(libc::AF_INET as u16, 2, &address.octets());
    Ok(request)
}

fn socket_address(sa_family: u16, at: usize, bytes: &[u8]) -> libc::sockaddr {
    let mut data = [0; 14];
    data[at..at + bytes.len()].copy_from_slice(bytes);
    libc::sockaddr { sa_family, sa_data: data.map(|byte| byte as c_char) }
}

/// Says once and for all which Ethernet address an interface's neighbour has.
pub fn neighbour(name: &str, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
    const ATF_COM: libc::c_int = 2;
    const ATF_PERM: libc::c_int = 4;
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut entry: libc::arpreq = unsafe { std::mem::zeroed() };
    entry.arp_pa = socket_address(libc::AF_INET as u16, 2, &address.octets());
    entry.arp_ha = socket_address(libc::ARPHRD_ETHER, 0, &mac);
    entry.arp_flags = ATF_COM | ATF_PERM;
    entry.arp_dev = request(name)?.ifr_name;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the descriptor is open and the request outlives the call, which only reads it.
    unsafe { ioctl::set_neighbour(socket.as_raw_fd(), &raw const entry)? };
    Ok(())
}

/// Sets an interface down.
pub fn down(name: &str) -> io::Result<()> {
    // Its flags are those of an interface that is not up.
    let (socket, flags) = (UdpSocket::bind("0.0.0.0:0")?, request(name)?);
    // SAFETY: the descriptor is open and the request outlives the call, which only reads it.
    unsafe { ioctl::set_flags(socket.as_raw_fd(), &raw const flags)? };
    Ok(())
}

/// Sets an interface up.
pub fn set_up(name: &str) -> io::Result<()> {
    let (socket, mut flags) = (UdpSocket::bind("0.0.0.0:0")?, request(name)?);
    flags.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the descriptor is open and the request outlives the call, which only reads it.
    unsafe { ioctl::set_flags(socket.as_raw_fd(), &raw const flags)? };
    Ok(())
}

/// Makes a bridge.
pub fn make_bridge(name: &str) -> io::Result<()> {
    let (socket, request) = (UdpSocket::bind("0.0.0.0:0")?, request(name)?);
    // SAFETY: the descriptor is open, and the name, which ends with a zero in it, outlives the call, which only reads it.
    unsafe { ioctl::add_bridge(socket.as_raw_fd(), request.ifr_name.as_ptr())? };
    Ok(())
}

/// Makes an interface one of a bridge's.
pub fn add_to_bridge(bridge: &str, port: &str) -> io::Result<()> {
    let (socket, mut request) = (UdpSocket::bind("0.0.0.0:0")?, request(bridge)?);
    let index = nix::net::if_::if_nametoindex(port)?;
    request.ifr_ifru.ifru_ifindex = index as libc::c_int;
    // SAFETY: the descriptor is open and the request outlives the call, which only reads it.
    unsafe { ioctl::add_port(socket.as_raw_fd(), &raw const request)? };
    Ok(())
}

/// Gives an interface an address in a network of 256 and sets it up.
pub fn up(name: &str, address: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let fd = socket.as_raw_fd();
    let (address, netmask) =
        (with_address(name, address)?, with_address(name, Ipv4Addr::new(255, 255, 255, 0))?);
    // SAFETY: the descriptor is open and the requests outlive the calls, which only read them.
    unsafe {
        ioctl::set_address(fd, &raw const address)?;
        ioctl::set_netmask(fd, &raw const netmask)?;
    }
    set_up(name)
}
