package ruvd

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ruvd/ruvd/clients/go/ruvdv1"
)

var errPartMissing = fromStatus(status.New(codes.DataLoss, "a part of a large message is missing"))

// messageParts joins the parts of a message that is too large for one response.
type messageParts struct {
	data  []byte
	total int64
}

func (p *messageParts) add(part *ruvdv1.MessagePart) error {
	if part.GetOffset() == 0 {
		p.data = nil
	}
	if part.GetOffset() != int64(len(p.data)) {
		return errPartMissing
	}
	p.data = append(p.data, part.GetData()...)
	p.total = part.GetTotalBytes()
	return nil
}

func (p *messageParts) isWhole() bool { return p.total > 0 && int64(len(p.data)) >= p.total }

// take returns the message, whose parts have all come, and forgets them.
func (p *messageParts) take() (*ruvdv1.Message, error) {
	message := &ruvdv1.Message{}
	if !p.isWhole() || proto.Unmarshal(p.data, message) != nil {
		return nil, errPartMissing
	}
	*p = messageParts{}
	return message, nil
}

// join sets the message of a Finished that was sent in parts.
func (p *messageParts) join(finished *ruvdv1.Finished) (err error) {
	if finished.GetMessageInParts() {
		finished.Message, err = p.take()
	}
	return err
}
