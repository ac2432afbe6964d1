// Command server is a small server of ruvd's API, written in Go, for comparison in bench/relay.py.
//
// It does the least that a compiled server of the same protocol has to do for a turn: it keeps the
// messages of each session in memory, sends them to an OpenAI-compatible server with the new ones,
// and passes the answer on token by token. It stores nothing on disk, and has none of ruvd's other
// features: no resuming, no request ids, no limits, no telemetry. So its figures are a bound, not an
// aim that keeps ruvd's promises.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "github.com/ruvd/ruvd/clients/go/ruvdv1"
)

// The default context window of ruvd: at most 10 exchanges, of which a trim keeps 3.
const maxExchanges, keepExchanges = 10, 3

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type exchange struct {
	user, assistant message
}

// session is a conversation. Its mutex makes its turns run one after the other.
type session struct {
	mutex  sync.Mutex
	window []exchange
}

type server struct {
	pb.UnimplementedSessionServiceServer
	url      string
	http     *http.Client
	mutex    sync.Mutex
	sessions map[string]*session
	count    atomic.Uint64
}

type body struct {
	Model         string          `json:"model"`
	Messages      []message       `json:"messages"`
	Stream        bool            `json:"stream"`
	StreamOptions map[string]bool `json:"stream_options"`
}

type chunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
		FinishReason string `json:"finish_reason"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens     int64 `json:"prompt_tokens"`
		CompletionTokens int64 `json:"completion_tokens"`
	} `json:"usage"`
}

func (s *server) session(id string) *session {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	found := s.sessions[id]
	if found == nil {
		found = &session{}
		s.sessions[id] = found
	}
	return found
}

// Complete runs one turn, or one completion without a session.
func (s *server) Complete(request *pb.CompleteRequest, stream grpc.ServerStreamingServer[pb.CompleteResponse]) error {
	if len(request.GetMessages()) != 1 {
		return status.Error(codes.InvalidArgument, "this server takes one message")
	}
	user := message{"user", request.GetMessages()[0].GetContent()}
	var turn *session
	var messages []message
	if id := request.GetSessionId(); id != "" {
		turn = s.session(id)
		turn.mutex.Lock()
		defer turn.mutex.Unlock()
		if len(turn.window) >= maxExchanges {
			turn.window = append([]exchange(nil), turn.window[len(turn.window)-keepExchanges:]...)
		}
		for _, each := range turn.window {
			messages = append(messages, each.user, each.assistant)
		}
	}
	messages = append(messages, user)
	answer, err := s.ask(stream.Context(), request, messages, stream)
	if err != nil {
		return err
	}
	if turn != nil {
		turn.window = append(turn.window, exchange{user, message{"assistant", answer}})
	}
	return nil
}

func (s *server) ask(
	ctx context.Context,
	request *pb.CompleteRequest,
	messages []message,
	stream grpc.ServerStreamingServer[pb.CompleteResponse],
) (string, error) {
	content, err := json.Marshal(body{
		request.GetOptions().GetModel(), messages, true, map[string]bool{"include_usage": true},
	})
	if err != nil {
		return "", err
	}
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(content))
	if err != nil {
		return "", err
	}
	call.Header.Set("Content-Type", "application/json")
	response, err := s.http.Do(call)
	if err != nil {
		return "", status.Error(codes.Unavailable, err.Error())
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", status.Error(codes.Unavailable, response.Status)
	}
	var sequence int64
	send := func(event *pb.CompletionEvent) error {
		sequence++
		event.Sequence = sequence
		return stream.Send(&pb.CompleteResponse{Event: event})
	}
	id := "cmpl-" + strconv.FormatUint(s.count.Add(1), 10)
	err = send(&pb.CompletionEvent{Event: &pb.CompletionEvent_Started{Started: &pb.Started{
		CompletionId: id, SessionId: request.GetSessionId(), ContextMessages: int32(len(messages)),
	}}})
	if err != nil {
		return "", err
	}
	var text strings.Builder
	finished := &pb.Finished{}
	reader := bufio.NewReader(response.Body)
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = status.Error(codes.Unavailable, "the answer ended early")
			}
			return "", err
		}
		data, found := bytes.CutPrefix(bytes.TrimSpace(line), []byte("data: "))
		if !found {
			continue
		}
		if string(data) == "[DONE]" {
			break
		}
		var part chunk
		if err := json.Unmarshal(data, &part); err != nil {
			return "", status.Error(codes.Unavailable, err.Error())
		}
		if usage := part.Usage; usage != nil {
			finished.Usage = &pb.Usage{
				PromptTokens: usage.PromptTokens, CompletionTokens: usage.CompletionTokens,
			}
		}
		for _, choice := range part.Choices {
			if choice.Delta.Content == "" {
				continue
			}
			text.WriteString(choice.Delta.Content)
			delta := &pb.Delta{Part: &pb.Delta_Text{Text: choice.Delta.Content}}
			if err := send(&pb.CompletionEvent{Event: &pb.CompletionEvent_Delta{Delta: delta}}); err != nil {
				return "", err
			}
		}
	}
	// What follows the last line ends the response, so that its connection is used again.
	_, _ = io.Copy(io.Discard, reader)
	finished.Message = &pb.Message{Role: pb.Role_ROLE_ASSISTANT, Content: text.String()}
	finished.FinishReason = pb.FinishReason_FINISH_REASON_STOP
	return text.String(), send(&pb.CompletionEvent{Event: &pb.CompletionEvent_Finished{Finished: finished}})
}

func run() error {
	listen := flag.String("listen", "", "path of the Unix socket")
	url := flag.String("base-url", "", "base URL of an OpenAI-compatible server, with /v1")
	flag.Parse()
	listener, err := net.Listen("unix", *listen)
	if err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true}
	service := &server{
		url:      *url + "/chat/completions",
		http:     &http.Client{Transport: transport},
		sessions: map[string]*session{},
	}
	grpcServer := grpc.NewServer()
	pb.RegisterSessionServiceServer(grpcServer, service)
	states := health.NewServer()
	states.SetServingStatus("readiness", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(grpcServer, states)
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	go func() {
		<-stop.Done()
		grpcServer.Stop()
	}()
	return grpcServer.Serve(listener)
}

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal(fmt.Errorf("the server has ended: %w", err))
	}
}
