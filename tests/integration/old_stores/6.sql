-- A store of the fifth schema as the sixth schema's ruvd migrated it, with the marks of 1.sql. Never edited.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA user_version = 6;
BEGIN TRANSACTION;
CREATE TABLE clock (
            pk INTEGER PRIMARY KEY CHECK (pk = 1),
            boot_id TEXT NOT NULL,
            offset_seconds REAL NOT NULL,
            now REAL NOT NULL,
            wall_shift REAL NOT NULL
        );
INSERT INTO "clock" VALUES(1,'00000000-0000-4000-8000-000000000000',1.79602282350303506849e+09,1.79603610050232076643e+09,0.0);
CREATE TABLE data_keys (
            branch INTEGER PRIMARY KEY,
            key_id TEXT NOT NULL,
            sealed BLOB NOT NULL
        );
CREATE TABLE forks (
            branch INTEGER PRIMARY KEY,
            parent INTEGER NOT NULL,
            base_position INTEGER NOT NULL,
            base_exchange INTEGER NOT NULL
        );
INSERT INTO "forks" VALUES(2,1,2,0);
CREATE TABLE garbage (branch INTEGER PRIMARY KEY);
CREATE TABLE labels (
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            session INTEGER NOT NULL,
            PRIMARY KEY (key, value, session)
        ) WITHOUT ROWID
        ;
INSERT INTO "labels" VALUES('team','bern',1);
INSERT INTO "labels" VALUES('team','bern',2);
CREATE TABLE messages (
            pk INTEGER PRIMARY KEY,
            branch INTEGER NOT NULL,
            exchange INTEGER NOT NULL,
            position INTEGER NOT NULL,
            end_bytes INTEGER NOT NULL,
            role TEXT NOT NULL,
            content TEXT NOT NULL
        , extra TEXT, checksum INTEGER);
INSERT INTO "messages" VALUES(1,1,0,0,30,'user','My name is Ada; d''accord? 😀',NULL,3855929191);
INSERT INTO "messages" VALUES(2,1,0,1,70,'assistant','My name is Ada; d''accord? 😀 #751f9064',NULL,2405598683);
INSERT INTO "messages" VALUES(3,1,1,2,79,'user','Who am I?',NULL,556700031);
INSERT INTO "messages" VALUES(4,1,1,3,98,'assistant','Who am I? #f598d4ec',NULL,3521072032);
INSERT INTO "messages" VALUES(5,2,1,2,82,'user','Another way.',NULL,4013694117);
INSERT INTO "messages" VALUES(6,2,1,3,104,'assistant','Another way. #08db115b',NULL,3229022482);
CREATE TABLE receipts (
            pk INTEGER PRIMARY KEY,
            session INTEGER NOT NULL,
            request_id TEXT NOT NULL,
            creates INTEGER NOT NULL,
            digest BLOB NOT NULL,
            completion_id TEXT NOT NULL,
            last_sequence INTEGER NOT NULL,
            message INTEGER,
            figures TEXT
        , checksum INTEGER);
INSERT INTO "receipts" VALUES(1,1,'first',0,X'47EF2BA70ED8D6C9595549BD36DDC5AE9A35E83B3393B65E4FA19C6A61269DAE','cmpl-1gCTQanESxRAdnLMaJRNA8a1',8,2,'{"finish_reason": "stop", "usage": [8, 0, 7], "timings": [0.0003709229986270657, 0.0007340949996432755, 0.0013224329995864537, null], "exchange_count": 1}',3540362728);
INSERT INTO "receipts" VALUES(2,1,'second',0,X'45A61F7BD26A1AF2B649D8EDB55C469E22BC10AFDCEC08FA367C783389211E73','cmpl-dJHVr068VPEAorV5GUfhElj6',3,4,'{"finish_reason": "stop", "usage": [18, 15, 4], "timings": [0.0001900629995361669, 0.0002926969991676742, 0.0003426610001042718, null], "exchange_count": 2}',2276233294);
INSERT INTO "receipts" VALUES(3,2,'',0,X'','cmpl-pt8Cu2Sk4hPDZST90R3e08V2',4,6,'{"finish_reason": "stop", "usage": [17, 15, 3], "timings": [0.00029910600096627604, 0.000583480001296266, 0.0010380390012869611, null], "exchange_count": 2}',1171741490);
CREATE TABLE sealing (
            pk INTEGER PRIMARY KEY CHECK (pk = 1),
            state TEXT NOT NULL,
            key_id TEXT NOT NULL,
            sealed BLOB NOT NULL,
            part TEXT NOT NULL,
            position INTEGER NOT NULL
        );
CREATE TABLE sessions (
            pk INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            create_time REAL NOT NULL,
            last_used_time REAL NOT NULL,
            idle_timeout_seconds REAL NOT NULL,
            expire_time REAL NOT NULL,
            message_count INTEGER NOT NULL,
            exchange_count INTEGER NOT NULL,
            size_bytes INTEGER NOT NULL,
            end_bytes INTEGER NOT NULL,
            window_start INTEGER NOT NULL,
            context_tokens INTEGER,
            context_bytes INTEGER NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            cached_tokens INTEGER,
            completion_tokens INTEGER NOT NULL,
            keep_exchanges INTEGER NOT NULL,
            max_exchanges INTEGER NOT NULL,
            max_tokens INTEGER,
            rendering TEXT NOT NULL,
            parent_id TEXT NOT NULL,
            model TEXT NOT NULL,
            labels TEXT NOT NULL,
            system_prompt TEXT NOT NULL
        , checksum INTEGER, tenant TEXT NOT NULL DEFAULT '', stored_bytes INTEGER NOT NULL DEFAULT 0);
INSERT INTO "sessions" VALUES(1,'ada',1.7960361004904665947e+09,1.79603610049570107465e+09,1800.0,1.79603790049570107454e+09,4,2,98,98,0,22,107,26,15,11,3,10,NULL,'messages','','','{"team": "bern"}','Be brief.',3839867079,'',107);
INSERT INTO "sessions" VALUES(2,'fork',1.79603610049764418599e+09,1.79603610049964213368e+09,1800.0,1.79603790049964213374e+09,4,2,104,104,0,20,113,17,15,3,3,10,NULL,'messages','ada','','{"team": "bern"}','Be brief.',2318023125,'',113);
CREATE TABLE tenants ( tenant TEXT PRIMARY KEY, sessions INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, tombstones INTEGER NOT NULL DEFAULT 0 ) WITHOUT ROWID;
INSERT INTO "tenants" VALUES('',2,220,0);
CREATE TABLE tombstones ( pk INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL );
CREATE TABLE totals (sessions INTEGER NOT NULL, tombstones INTEGER NOT NULL DEFAULT 0);
INSERT INTO "totals" VALUES(2,0);
CREATE INDEX sessions_by_expiry ON sessions (expire_time);
CREATE INDEX forks_by_parent ON forks (parent, base_position, base_exchange);
CREATE UNIQUE INDEX messages_in_order
        ON messages (branch, exchange, position, end_bytes)
        ;
CREATE INDEX receipts_by_session ON receipts (session, request_id);
CREATE INDEX receipts_by_completion ON receipts (completion_id)
        WHERE completion_id <> ''
        ;
CREATE INDEX receipts_by_creation ON receipts (request_id) WHERE creates;
CREATE INDEX data_keys_by_key ON data_keys (key_id);
CREATE INDEX sessions_by_use ON sessions (tenant, last_used_time);
CREATE INDEX tombstones_by_tenant ON tombstones (tenant);
CREATE TRIGGER session_added AFTER INSERT ON sessions BEGIN UPDATE totals SET sessions = sessions + 1; INSERT INTO tenants (tenant, sessions, bytes) VALUES (NEW.tenant, 1, NEW.stored_bytes) ON CONFLICT (tenant) DO UPDATE SET sessions = sessions + 1, bytes = bytes + excluded.bytes; END;
CREATE TRIGGER session_changed AFTER UPDATE OF stored_bytes ON sessions WHEN NEW.stored_bytes <> OLD.stored_bytes BEGIN UPDATE tenants SET bytes = bytes + NEW.stored_bytes - OLD.stored_bytes WHERE tenant = NEW.tenant; END;
CREATE TRIGGER session_removed AFTER DELETE ON sessions BEGIN UPDATE totals SET sessions = sessions - 1; UPDATE tenants SET sessions = sessions - 1, bytes = bytes - OLD.stored_bytes WHERE tenant = OLD.tenant; DELETE FROM tenants WHERE tenant = OLD.tenant AND sessions = 0 AND tombstones = 0; END;
CREATE TRIGGER tombstone_added AFTER INSERT ON tombstones BEGIN UPDATE totals SET tombstones = tombstones + 1; INSERT INTO tenants (tenant, tombstones) VALUES (NEW.tenant, 1) ON CONFLICT (tenant) DO UPDATE SET tombstones = tombstones + 1; END;
CREATE TRIGGER tombstone_removed AFTER DELETE ON tombstones BEGIN UPDATE totals SET tombstones = tombstones - 1; UPDATE tenants SET tombstones = tombstones - 1 WHERE tenant = OLD.tenant; DELETE FROM tenants WHERE tenant = OLD.tenant AND sessions = 0 AND tombstones = 0; END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('sessions',2);
COMMIT;
