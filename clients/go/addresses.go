package ruvd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/resolver"
)

// splitAddresses returns the entries of a list with commas. Its error names the entry that is wrong.
// An address without a comma is not checked here.
func splitAddresses(list string) ([]string, error) {
	if !strings.Contains(list, ",") {
		return []string{list}, nil
	}
	entries := strings.Split(list, ",")
	for i, entry := range entries {
		entries[i] = strings.TrimSpace(entry)
		if err := checkAddress(entries[i]); err != nil {
			return nil, fmt.Errorf("ruvd: entry %d of the addresses, %q, %w", i+1, entries[i], err)
		}
	}
	return entries, nil
}

func checkAddress(entry string) error {
	scheme, path, _ := strings.Cut(entry, ":")
	host, port, notTCP := net.SplitHostPort(entry)
	number, notANumber := strconv.ParseUint(port, 10, 16)
	switch {
	case entry == "":
		return errors.New("is empty")
	case strings.ContainsAny(entry, " \t\r\n"):
		return errors.New("has a space inside")
	case scheme == "unix" && strings.Trim(path, "/") == "":
		return errors.New("has no path")
	case scheme == "unix":
		return nil
	case strings.Contains(entry, "://"):
		target, err := url.Parse(entry)
		if err != nil || resolver.Get(target.Scheme) == nil {
			return errors.New("has an unknown scheme")
		}
		return nil
	case notTCP != nil || host == "" || notANumber != nil || number == 0:
		return errors.New("is neither host:port, with a port from 1 to 65535, nor unix:PATH")
	}
	return nil
}

// isUnixSocket reports whether an address is unix:PATH.
func isUnixSocket(address string) bool { return strings.HasPrefix(address, "unix:") }

func isTCP(address string) bool { return !isUnixSocket(address) }

// isLocal reports whether nothing that is sent to the address leaves this machine.
func isLocal(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return isUnixSocket(address)
	}
	ip, err := netip.ParseAddr(host)
	return isUnixSocket(address) || strings.EqualFold(host, "localhost") ||
		err == nil && ip.Unmap().IsLoopback()
}

// isName reports whether an address may stand for several daemons.
func isName(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return !isUnixSocket(address)
	}
	_, notAnIP := netip.ParseAddr(host)
	return !isUnixSocket(address) && notAnIP != nil
}
