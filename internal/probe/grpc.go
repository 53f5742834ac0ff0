package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// GRPC finds a backend well if it answers SERVING to the gRPC health protocol
// (grpc.health.v1), in plain text, on a connection made for it.
type GRPC struct {
	// Service is the one that is asked about; "" is the server as a whole.
	Service string
	// Port is asked instead of the address's own unless it is 0.
	Port int
	// Allow judges the address that is connected to; nil: any will do.
	Allow Allow
}

const (
	// maxMessage bounds a health response in bytes; a true one has two.
	maxMessage = 4 << 10
	// maxHeaderList bounds the fields of a response in bytes.
	maxHeaderList = 64 << 10
)

var errOneConnection = errors.New("the backend closed the connection")

// Probe implements Check.
func (c GRPC) Probe(ctx context.Context, address string) error {
	return failure(ctx, c.ask(ctx, address))
}

func (c GRPC) ask(ctx context.Context, address string) error {
	// gRPC dials in the background and again after a failure. Dialling here
	// keeps the dial's own error, and makes it one connection.
	conn, err := dial(ctx, address, c.Port, c.Allow)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client, err := grpc.NewClient("passthrough:///backend", // whatever its name, there is but conn
		grpc.WithAuthority(address),
		grpc.WithContextDialer(once(conn)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithUserAgent(UserAgent),
		grpc.WithMaxHeaderListSize(maxHeaderList),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	res, err := grpc_health_v1.NewHealthClient(client).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: c.Service})
	if err != nil {
		return c.explain(err)
	}
	if res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("status %s, wants SERVING", res.GetStatus())
	}
	return nil
}

// once returns a dialer that hands out conn and nothing after it.
func once(conn net.Conn) func(context.Context, string) (net.Conn, error) {
	var mu sync.Mutex
	return func(context.Context, string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if conn == nil {
			return nil, errOneConnection
		}
		c := conn
		conn = nil
		return c, nil
	}
}

// explain says what the protocol's own codes mean to an operator.
func (c GRPC) explain(err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.NotFound:
		return fmt.Errorf("the backend knows no service %q", c.Service)
	case codes.Unimplemented:
		return errors.New("the backend does not speak the gRPC health protocol")
	default:
		return fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
}
