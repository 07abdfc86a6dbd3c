package call

import (
	"net/netip"
	"testing"
)

func TestPublicUnicast(t *testing.T) {
	public := []string{
		"1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1",
		"198.17.255.255", "198.20.0.1", "223.255.255.254", "192.0.1.1",
		"2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "2001:4860:4860::8888", "2001:200::1", "2400:cb00::1",
	}
	for _, s := range public {
		if !PublicUnicast(netip.MustParseAddr(s)) {
			t.Errorf("%s is refused; a peer on the Internet would get no call", s)
		}
	}
	special := []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
		"169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1",
		"198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "64:ff9b:1:fffe::7f00:1", "100::1",
		"2001::1", "2001:0:53aa:64c::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1",
		"3fff::1", "5f00::1", "fc00::1", "fd00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
		"4000::1", "8000::1", "e000::1",
	}
	for _, s := range special {
		if PublicUnicast(netip.MustParseAddr(s)) {
			t.Errorf("%s is taken for a public address; it leads inside", s)
		}
	}
	if PublicUnicast(netip.Addr{}) {
		t.Error("the zero address is taken for a public one")
	}
	if PublicUnicast(netip.MustParseAddr("2606:4700:4700::1111%eth0")) {
		t.Error("an address with a zone is taken for a public one")
	}
}
