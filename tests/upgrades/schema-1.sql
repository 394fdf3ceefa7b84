PRAGMA application_id=0;
PRAGMA user_version=0;
BEGIN TRANSACTION;
CREATE TABLE desired_state (
                name TEXT PRIMARY KEY, value TEXT NOT NULL, reason TEXT NOT NULL, set_ns BIGINT NOT NULL);
INSERT INTO "desired_state" VALUES('desired_state.name','{}','desired_state.reason',1);
CREATE TABLE emergency_episode (
                id INTEGER PRIMARY KEY AUTOINCREMENT, began_ns BIGINT NOT NULL, first_ns BIGINT, latest_ns BIGINT NOT NULL,
                max_transactions BIGINT NOT NULL, max_seconds BIGINT NOT NULL,
                reserved BIGINT NOT NULL CHECK (reserved >= 0 AND reserved <= max_transactions),
                ended_ns BIGINT, end_reason TEXT);
INSERT INTO "emergency_episode" VALUES(1,1,NULL,1,100,1,1,2,NULL);
CREATE TABLE failover_event (
                id INTEGER PRIMARY KEY AUTOINCREMENT, time_ns BIGINT NOT NULL, kind TEXT NOT NULL, level_from TEXT, level_to TEXT, member TEXT,
                reason TEXT NOT NULL, details TEXT NOT NULL);
INSERT INTO "failover_event" VALUES(1,1,'failover_event.kind',NULL,NULL,NULL,'failover_event.reason','{}');
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	applied_ns BIGINT NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1,1795873014975714731);
CREATE TABLE snapshot (name TEXT PRIMARY KEY, value TEXT NOT NULL, written_ns BIGINT NOT NULL);
INSERT INTO "snapshot" VALUES('snapshot.name','{}',1);
CREATE INDEX failover_event_time ON failover_event (time_ns);
CREATE UNIQUE INDEX emergency_episode_open ON emergency_episode ((1)) WHERE ended_ns IS NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('failover_event',1);
INSERT INTO "sqlite_sequence" VALUES('emergency_episode',1);
COMMIT;
