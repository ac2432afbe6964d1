package ruvd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// TokenSource returns the bearer token of a call that has this context. It is called for every call,
// also concurrently. Its error fails the call with codes.Unauthenticated.
type TokenSource func(ctx context.Context) (string, error)

// TLSConfig has the files, all PEM, for a daemon that listens with TLS. New reads them.
type TLSConfig struct {
	// CAFile has the certificates to trust. If it is empty, these are the system's.
	CAFile string
	// CertFile and KeyFile are the client's own certificate and key, if the daemon asks for them.
	CertFile, KeyFile string
	// ServerName is the name in the daemon's certificate, if it is not the host of the address.
	ServerName string
}

// WithToken sends a bearer token with every call, or none if it is empty. Without WithToken,
// WithTokenFile and WithTokenSource, the token is in the file RUVD_TOKEN_FILE, or else in RUVD_TOKEN.
//
// A client with a token needs TLS, a Unix socket, or an address of loopback.
func WithToken(token string) ClientOption {
	return func(s *settings) {
		s.hasToken = true
		s.token, s.tokenSource = token, nil
	}
}

// WithTokenFile sends the bearer token in a file, which is read for every call, because it may be
// renewed.
func WithTokenFile(path string) ClientOption {
	return WithTokenSource(func(context.Context) (string, error) {
		content, err := os.ReadFile(path)
		return string(content), err
	})
}

// WithTokenSource sends the bearer token that a function returns.
func WithTokenSource(source TokenSource) ClientOption {
	return func(s *settings) {
		s.hasToken = true
		s.token, s.tokenSource = "", source
	}
}

// WithTLS encrypts the connection, unless the address is a Unix socket. Without it, the files are in
// RUVD_TLS_CA_FILE, RUVD_TLS_CLIENT_CERT_FILE and RUVD_TLS_CLIENT_KEY_FILE, and the name in
// RUVD_TLS_SERVER_NAME. If no file is set, the connection is not encrypted.
func WithTLS(config TLSConfig) ClientOption {
	return func(s *settings) { s.tls = &config }
}

// security returns the gRPC options for TLS and the token at these addresses.
func (s *settings) security(addresses []string) ([]grpc.DialOption, error) {
	if !s.hasToken {
		s.tokenFromEnvironment()
	}
	if s.tls == nil {
		s.tls = tlsFromEnvironment()
	}
	transport := insecure.NewCredentials()
	if s.tls != nil && slices.ContainsFunc(addresses, isTCP) {
		config, err := s.tls.read()
		if err != nil {
			return nil, fmt.Errorf("ruvd: TLS: %w", err)
		}
		transport = exceptSockets{credentials.NewTLS(config)}
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(transport)}
	if s.token != "" {
		token, err := cleanToken(s.token)
		if err != nil {
			return nil, fmt.Errorf("ruvd: %w", err)
		}
		s.tokenSource = func(context.Context) (string, error) { return token, nil }
	}
	if s.tokenSource == nil {
		return options, nil
	}
	for _, address := range addresses {
		if s.tls == nil && !isLocal(address) {
			return nil, fmt.Errorf("ruvd: a token is not sent to %s without TLS: use WithTLS", address)
		}
	}
	return append(options, grpc.WithPerRPCCredentials(tokenCredentials{s.tokenSource})), nil
}

func (s *settings) tokenFromEnvironment() {
	if path := os.Getenv("RUVD_TOKEN_FILE"); path != "" {
		WithTokenFile(path)(s)
	} else {
		WithToken(os.Getenv("RUVD_TOKEN"))(s)
	}
}

// tlsFromEnvironment returns nil if no variable names a file.
func tlsFromEnvironment() *TLSConfig {
	config := TLSConfig{
		CAFile:   os.Getenv("RUVD_TLS_CA_FILE"),
		CertFile: os.Getenv("RUVD_TLS_CLIENT_CERT_FILE"),
		KeyFile:  os.Getenv("RUVD_TLS_CLIENT_KEY_FILE"),
	}
	if config == (TLSConfig{}) {
		return nil
	}
	config.ServerName = os.Getenv("RUVD_TLS_SERVER_NAME")
	return &config
}

// read reads the files.
func (c TLSConfig) read() (*tls.Config, error) {
	config := &tls.Config{ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate (PEM)", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("a client certificate and its key belong together")
	}
	if c.CertFile != "" {
		certificate, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", c.CertFile, c.KeyFile, err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}

// exceptSockets encrypts all connections but those to Unix sockets.
type exceptSockets struct {
	credentials.TransportCredentials
}

func (e exceptSockets) ClientHandshake(
	ctx context.Context, authority string, connection net.Conn,
) (net.Conn, credentials.AuthInfo, error) {
	if connection.RemoteAddr().Network() == "unix" {
		return insecure.NewCredentials().ClientHandshake(ctx, authority, connection)
	}
	return e.TransportCredentials.ClientHandshake(ctx, authority, connection)
}

func (e exceptSockets) Clone() credentials.TransportCredentials {
	return exceptSockets{e.TransportCredentials.Clone()}
}

// tokenCredentials adds the token to the metadata of every call.
type tokenCredentials struct{ source TokenSource }

func (c tokenCredentials) GetRequestMetadata(
	ctx context.Context, _ ...string,
) (map[string]string, error) {
	token, err := c.source(ctx)
	if err == nil {
		token, err = cleanToken(token)
	}
	switch {
	case err == nil:
		return map[string]string{"authorization": "Bearer " + token}, nil
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	default:
		return nil, status.Errorf(codes.Unauthenticated, "there is no token for the call: %v", err)
	}
}

// RequireTransportSecurity is false, because New has checked that no token leaves the machine in
// plain text. gRPC itself would refuse loopback, too.
func (tokenCredentials) RequireTransportSecurity() bool { return false }

// cleanToken returns the token without whitespace around it, if it can be sent.
func cleanToken(token string) (string, error) {
	token = strings.TrimSpace(token)
	if token == "" {
		return "", errors.New("the token is empty")
	}
	if strings.ContainsFunc(token, func(char rune) bool { return char <= ' ' || char > '~' }) {
		return "", errors.New("the token has a character that is not visible ASCII")
	}
	return token, nil
}
