package probe

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// serveGRPC runs a gRPC server for as long as the test, and counts its
// connections.
func serveGRPC(t *testing.T, s *grpc.Server) (address string, connections *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	counted := &countingListener{Listener: l}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(counted) })
	t.Cleanup(func() {
		s.Stop()
		wg.Wait()
	})
	return l.Addr().String(), &counted.n
}

type countingListener struct {
	net.Listener
	n atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

func TestGRPC(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1") // were it asked, nothing would arrive
	states := health.NewServer()
	states.SetServingStatus("well", grpc_health_v1.HealthCheckResponse_SERVING)
	states.SetServingStatus("ill", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	states.SetServingStatus("odd", grpc_health_v1.HealthCheckResponse_UNKNOWN)
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, states)
	address, connections := serveGRPC(t, server)

	for service, want := range map[string]string{
		"":        "",
		"well":    "",
		"ill":     "status NOT_SERVING, wants SERVING",
		"odd":     "status UNKNOWN, wants SERVING",
		"un\nown": `the backend knows no service "un\nown"`,
	} {
		connections.Store(0)
		require.Equal(t, want, probe(t, GRPC{Service: service}, address, ample))
		require.EqualValues(t, 1, connections.Load(), "a connection for each probe")
	}

	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	n, err := net.LookupPort("tcp", port)
	require.NoError(t, err)
	require.Empty(t, probe(t, GRPC{Port: n}, nobody(t), ample), "another port of the host")
}

func TestGRPCBackendsThatAreNotWell(t *testing.T) {
	bare, _ := serveGRPC(t, grpc.NewServer())
	require.Equal(t, "the backend does not speak the gRPC health protocol", probe(t, GRPC{}, bare, ample))

	require.Regexp(t, `^dial tcp 127\.0\.0\.1:\d+: connect: connection refused$`, probe(t, GRPC{}, nobody(t), ample))
	require.Equal(t, hung, probe(t, GRPC{}, unaccepting(t), brief), "not accepted")
	require.Equal(t, hung, probe(t, GRPC{}, serve(t, silent), brief), "accepts and says nothing")

	hangUp := serve(t, func(net.Conn) {})
	require.Contains(t, probe(t, GRPC{}, hangUp, ample), "Unavailable: ")
	nonsense := serve(t, saysAndHolds(strings.Repeat("HTTP/1.1 400 Bad Request\r\n\r\n", 100)))
	require.Contains(t, probe(t, GRPC{}, nonsense, ample), "Unavailable: ")
	endless := serve(t, goesOn("", strings.Repeat("\x00", 64<<10), 0))
	require.NotEmpty(t, probe(t, GRPC{}, endless, ample))
}

// strange is a health server that does as told.
type strange struct {
	grpc_health_v1.UnimplementedHealthServer
	check func(context.Context) (*grpc_health_v1.HealthCheckResponse, error)
	calls atomic.Int32
}

func (s *strange) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	s.calls.Add(1)
	return s.check(ctx)
}

func TestGRPCServersThatAreStrange(t *testing.T) {
	for _, test := range []struct {
		name, want string
		hangs      bool
		check      func(context.Context) (*grpc_health_v1.HealthCheckResponse, error)
	}{
		{"hangs", hung, true, func(ctx context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}},
		{"fails", `Unavailable: try\nlater`, false, func(context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
			return nil, status.Error(codes.Unavailable, "try\nlater")
		}},
		{"talks for long", "xxxxxxxx…", false, func(context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
			return nil, status.Error(codes.Internal, strings.Repeat("x", 10_000))
		}},
		{"a huge message", "ResourceExhausted: grpc: received message larger than max", false, func(context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
			res := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
			res.ProtoReflect().SetUnknown(append([]byte{0x7a, 0xc0, 0xb8, 0x02}, make([]byte, 40_000)...)) // field 15, 40,000 bytes
			return res, nil
		}},
		{"a huge head", ": ", false, func(ctx context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
			_ = grpc.SetHeader(ctx, metadata.Pairs("x", strings.Repeat("y", 200<<10)))
			return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := grpc.NewServer()
			s := &strange{check: test.check}
			grpc_health_v1.RegisterHealthServer(server, s)
			address, connections := serveGRPC(t, server)
			timeout := ample
			if test.hangs {
				timeout = brief
			}
			require.Contains(t, probe(t, GRPC{}, address, timeout), test.want)
			require.EqualValues(t, 1, s.calls.Load(), "no retries")
			require.EqualValues(t, 1, connections.Load())
		})
	}
}
