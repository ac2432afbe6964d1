// Command client runs streams on a server of ruvd's API for a time, with grpc-go and the generated
// stub, as a service in Go would. bench/relay_go_client.py starts it.
//
// It prints one JSON object: the number of streams, the seconds that they took, the seconds to the
// first token of each, and its own CPU seconds.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/ruvd/ruvd/clients/go/ruvdv1"
)

type result struct {
	Streams      int       `json:"streams"`
	Seconds      float64   `json:"seconds"`
	FirstSeconds []float64 `json:"first_seconds"`
	CPUSeconds   float64   `json:"cpu_seconds"`
}

type load struct {
	address, model, text, session string
	parallel, connections         int
	seconds                       float64
}

func connect(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// stream runs one stream and returns the seconds to its first token.
func stream(stub pb.SessionServiceClient, load load, worker int) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	request := &pb.CompleteRequest{
		Messages: []*pb.Message{{Role: pb.Role_ROLE_USER, Content: load.text}},
		Options:  &pb.CompletionOptions{Model: load.model},
	}
	if load.session != "" {
		request.SessionId = fmt.Sprintf("%s-%d", load.session, worker)
	}
	began := time.Now()
	call, err := stub.Complete(ctx, request)
	if err != nil {
		return 0, err
	}
	first, text := 0.0, ""
	for {
		response, err := call.Recv()
		if err != nil {
			return 0, err
		}
		if delta := response.GetEvent().GetDelta(); delta != nil {
			if first == 0 {
				first = time.Since(began).Seconds()
			}
			text += delta.GetText()
		}
		if finished := response.GetEvent().GetFinished(); finished != nil {
			if answer := finished.GetMessage().GetContent(); answer != text && answer != "" {
				return 0, fmt.Errorf("the text %q is not the answer %q", text, answer)
			}
			break
		}
	}
	_, _ = call.Recv() // the end of the stream
	return first, nil
}

func run(load load) (*result, error) {
	stubs := make([]pb.SessionServiceClient, max(1, load.connections))
	for number := range stubs {
		connection, err := connect(load.address)
		if err != nil {
			return nil, err
		}
		defer connection.Close()
		stubs[number] = pb.NewSessionServiceClient(connection)
	}
	for worker := range stubs { // so that the connections are open
		if _, err := stream(stubs[worker], load, worker); err != nil {
			return nil, err
		}
	}
	var group sync.WaitGroup
	var mutex sync.Mutex
	var failure error
	all := &result{}
	cpu := cpuSeconds()
	began := time.Now()
	end := began.Add(time.Duration(load.seconds * float64(time.Second)))
	for worker := range load.parallel {
		group.Add(1)
		go func() {
			defer group.Done()
			var firsts []float64
			var err error
			for first := 0.0; err == nil && time.Now().Before(end); firsts = append(firsts, first) {
				if first, err = stream(stubs[worker%len(stubs)], load, worker); err != nil {
					break
				}
			}
			mutex.Lock()
			defer mutex.Unlock()
			all.FirstSeconds = append(all.FirstSeconds, firsts...)
			if err != nil {
				failure = err
			}
		}()
	}
	group.Wait()
	all.Streams = len(all.FirstSeconds)
	all.Seconds = time.Since(began).Seconds()
	all.CPUSeconds = cpuSeconds() - cpu
	return all, failure
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

func main() {
	log.SetFlags(0)
	var load load
	flag.StringVar(&load.address, "address", "", "address of the server, such as unix:PATH")
	flag.StringVar(&load.model, "model", "", "model of the requests")
	flag.StringVar(&load.text, "text", "hi", "message of the requests")
	flag.StringVar(&load.session, "session", "", "prefix of the sessions' ids; empty: no sessions")
	flag.IntVar(&load.parallel, "parallel", 16, "streams at a time")
	flag.IntVar(&load.connections, "connections", 1, "connections that they share")
	flag.Float64Var(&load.seconds, "seconds", 1.5, "duration")
	flag.Parse()
	all, err := run(load)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		log.Fatal(err)
	}
}
