/*
 * Runs late_writer.statement from a PRE_COMMIT callback. Loaded before shapefeed, its callback runs after shapefeed's:
 * Postgres calls the one that was registered last first.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static char *statement = NULL;

static void
write_late(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT || statement == NULL || statement[0] == '\0' ||
		GetTopTransactionIdIfAny() == InvalidTransactionId)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute(statement, false, 0);
	SPI_finish();
	PopActiveSnapshot();
}

void
_PG_init(void)
{
	DefineCustomStringVariable("late_writer.statement", "Statement to run when a transaction that wrote commits.", NULL,
							   &statement, "", PGC_USERSET, 0, NULL, NULL, NULL);
	RegisterXactCallback(write_late, NULL);
}
