// Sse is an HTTP server whose GET /chat?session=S&message=M streams the answer to a browser.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"

	ruvd "github.com/ruvd/ruvd/clients/go"
)

func main() {
	client, err := ruvd.New() // one connection for all requests
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("GET /chat", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-cache")
		message, session := r.FormValue("message"), ruvd.WithSession(r.FormValue("session"))
		// Leaving the page ends the request's context, which cancels the completion.
		for text, err := range client.Complete(message, session).Text(r.Context()) {
			if err != nil {
				send(w, "error", details(err))
				return
			}
			send(w, "", text)
		}
		send(w, "done", struct{}{})
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}

func details(err error) map[string]string {
	var failure *ruvd.Error
	if errors.As(err, &failure) {
		return map[string]string{"reason": string(failure.Reason), "message": failure.Message}
	}
	return map[string]string{"reason": "", "message": err.Error()}
}

// send writes one server-sent event and flushes it.
func send(w http.ResponseWriter, event string, data any) {
	encoded, _ := json.Marshal(data)
	if event != "" {
		fmt.Fprintf(w, "event: %s\n", event)
	}
	fmt.Fprintf(w, "data: %s\n\n", encoded)
	_ = http.NewResponseController(w).Flush()
}
